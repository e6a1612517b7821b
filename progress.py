"""What a training prints while it runs."""

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar with epoch, loss, validation accuracy, best and time left; without a terminal a line an
    epoch, free of control characters. `steps` are those of an epoch."""

    def __init__(self, epochs, steps, history, shows=True):
        self.shows, self.epochs, self.start, self.done = (
            shows,
            epochs,
            time.perf_counter(),
            len(history),
        )
        self.bar = tqdm(
            total=epochs * steps, initial=len(history) * steps,
            disable=None if shows else True, dynamic_ncols=True, file=sys.stderr,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {remaining} left{postfix}",
        )  # fmt: skip

    def watch(self, batches, epoch, check=lambda: None):
        """The batches of an epoch, counted as they pass; `check()` comes before each."""
        self.bar.set_description(f"epoch {epoch}/{self.epochs} ", refresh=False)
        for images, labels in batches:
            check()
            yield images, labels
            self.bar.update()

    def report(self, history):
        row, best = history[-1], max(history, key=lambda row: row["val/accuracy"])
        text = f"loss {row['train/loss']:.4f}, val {row['val/accuracy']:.4f}"
        text += f", best {best['val/accuracy']:.4f}"
        self.bar.set_postfix_str(text)
        if self.bar.disable and self.shows:
            elapsed = time.perf_counter() - self.start
            left = elapsed / (row["epoch"] - self.done) * (self.epochs - row["epoch"])
            print(f"epoch {row['epoch']}/{self.epochs}: {text}, {left:.0f} s left", flush=True)

    def close(self):
        self.bar.close()
