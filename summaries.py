"""What TensorBoard shows beside curves: the config, pictures, a table of all runs."""

import json
import struct
import time

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch.utils.tensorboard.summary import custom_scalars, text

from config import flatten, flatten_telling

CHARTS = {
    "loss, training and validation (nats per image)": ["train/loss", "val/loss"],
    "accuracy, training and validation": ["train/accuracy", "val/accuracy"],
    "learning rate": ["train/lr"],
    "images a second": ["train/images_per_second"],
    "L2 norm of the weights of every layer": ["weight_norm/.*"],
    "L2 norm of the gradient of every layer, 64 fixed images": ["gradient_norm/.*"],
}


def chart_layout():
    """The page "custom scalars": curves that belong together in one chart."""
    charts = {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in CHARTS.items()}
    return custom_scalars({"training": charts}).value[0]


def config_text(config):
    """The config as a table, a row a key."""
    rows = [f"| {key} | `{json.dumps(value)}` |" for key, value in flatten(config).items()]
    return text("config", "\n".join(["| key | value |", "|---|---|", *rows])).value[0]


def hparams_start(config, name):
    """The row of the run on the page "HPARAMS"; its columns are the keys of the config."""
    flat = flatten_telling(config)
    plain = {
        k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in flat.items()
    }
    return hparams_pb(plain, trial_id=name).value[0]


def hparams_end():
    """That the run has succeeded, for the page "HPARAMS"."""
    info = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
    tag = metadata.SESSION_END_INFO_TAG
    return Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)


def picture(tag, path):
    """The PNG at `path` as it is. Raises OSError where it cannot be read."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    return Summary.Value(tag=tag, image=image)
