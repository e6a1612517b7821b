"""W&B as a sink that may fail: then it says so in one line, and the training goes on."""

import contextlib
import os
import sys
from pathlib import Path

from checks import first_line
from outcome import current_exercise

# W&B reads these itself; what is set outside holds. Seconds: it may cost a run no more than that.
SETTINGS = {"WANDB_SILENT": "true", "WANDB_INIT_TIMEOUT": "12", "WANDB_FINISH_TIMEOUT": "12"}


def mode_of(config):
    """config["wandb_mode"], or where that is "auto" what W&B's own variable says."""
    if config["wandb_mode"] != "auto":
        return config["wandb_mode"]
    outside = os.environ.get("WANDB_MODE", "auto")
    outside = {"run": "online", "dryrun": "offline"}.get(outside, outside)  # their older names
    return outside if outside in ("online", "offline", "disabled") else "auto"


class WandbSink:
    """A W&B run, online when logged in and offline otherwise. Never asks, never raises.

    `id` is that of the run, or `run_id` where there is none.
    """

    def __init__(self, folder, config, run_id=None):
        self.run, self.id = None, run_id
        if mode_of(config) == "disabled":
            return
        try:
            self.run = self._start(folder, config, run_id)
            self.run.define_metric("*", step_metric="epoch")
            self.id = self.run.id
        except Exception as error:
            self._give_up(error)

    def _start(self, folder, config, run_id):
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import wandb

        keep_quiet(Path(wandb.env.get_cache_dir()) / "logs", folder / "wandb")
        seeds = folder.name.startswith("seed_")  # alike in all runs of several seeds
        name = f"{folder.parent.name}-{folder.name}" if seeds else folder.name
        common = {"project": "lab01", "group": current_exercise(folder), "name": name}
        common |= {"tags": [config["dataset"], config["model"]["kind"]]}
        common |= {"dir": str(folder), "config": config, "id": run_id}
        mode = mode_of(config)
        try:
            if mode == "auto":
                mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
            if mode == "online":
                return wandb.init(mode=mode, resume="allow" if run_id else None, **common)
        except Exception as error:
            with contextlib.suppress(Exception):
                wandb.teardown()  # or the next init meets the failed one's service
            run = wandb.init(mode="offline", **common)
            warn(f"W&B is not online ({first_line(error)}); it logs offline in {run.dir}")
            return run
        return wandb.init(mode="offline", **common)

    def log(self, row):
        if self.run:
            try:
                self.run.log(row)
            except Exception as error:
                self._give_up(error)

    def log_end(self, numbers, results, dataset, rows, draw_maps, pictures):
        """The final numbers and those of the weights that are kept as summary, the pictures
        {tag: path}, and a table of predictions of `dataset`, with maps where `draw_maps()` gives
        some."""
        if self.run:
            try:
                import wandb

                table = predictions_table(wandb, dataset, rows, draw_maps())
                shown = {tag: wandb.Image(str(path)) for tag, path in pictures.items()}
                self.run.log(shown | {"predictions": table, "epoch": results["epochs"]})
                val = {f"val/{key}": results["val"][key] for key in ("accuracy", "loss")}
                self.run.summary.update(numbers | val)
            except Exception as error:
                self._give_up(error)

    def close(self):
        if self.run:
            try:
                self.run.finish()
            except Exception as error:
                self._give_up(error)
        self.run = None

    def _give_up(self, error):
        warn(f"W&B stopped ({first_line(error)}); training goes on without it")
        self.run = None
        if wandb := sys.modules.get("wandb"):
            with contextlib.suppress(Exception):
                wandb.teardown()  # or it fails once more, at the end of the process


def predictions_table(wandb, dataset, rows, maps):
    """image, true and predicted class, confidence, and the map where there is one."""
    columns = ["image", "true", "predicted", "confidence"]
    table = wandb.Table([*columns, "map"] if maps else columns)
    for number, row in enumerate(rows):
        pixels = dataset.images[row["index"]].permute(1, 2, 0).squeeze(2).cpu().numpy()
        words = [dataset.classes[row[key]] for key in ("true", "predicted")]
        extra = [wandb.Image(maps[number])] if maps else []
        table.add_data(wandb.Image(pixels), *words, row["confidence"], *extra)
    return table


def last_id(folder):
    """The id of the W&B run that was logged in a run folder last, or None."""
    names = [path.name for path in (folder / "wandb").glob("*run-*-*")]
    names.sort(key=lambda name: name.removeprefix("offline-"))  # then comes the time
    return names[-1].removeprefix("offline-").split("-", 2)[2] if names else None


def keep_quiet(logs, instead):
    """Let W&B cache in `instead` where it cannot write its `logs`, which would go to stderr."""
    with contextlib.suppress(OSError):
        logs.mkdir(parents=True, exist_ok=True)
    if not os.access(logs, os.W_OK):
        os.environ["WANDB_CACHE_DIR"] = str(instead.absolute())
        warn(f"W&B cannot write to {logs.parent}; it caches in {instead}")


def warn(text):
    print(f"warning: {text}", file=sys.stderr)
