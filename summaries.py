"""What TensorBoard shows beside curves: the config, pictures, a table of all runs."""

import json
import struct
import time

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import metadata as custom_metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MultilineChartContent,
)
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.util.tensor_util import make_tensor_proto

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
    charts = [
        Chart(title=title, multiline=MultilineChartContent(tag=[f"^{tag}$" for tag in tags]))
        for title, tags in CHARTS.items()
    ]
    layout = Layout(category=[Category(title="training", chart=charts)])
    about = custom_metadata.create_summary_metadata()
    return tensor_value(custom_metadata.CONFIG_SUMMARY_TAG, layout.SerializeToString(), about)


def config_text(config):
    """The config as a table, a row a key."""
    rows = [f"| {key} | `{json.dumps(value)}` |" for key, value in flatten(config).items()]
    text = "\n".join(["| key | value |", "|---|---|", *rows])
    about = text_metadata.create_summary_metadata("config", "what the run was started with")
    return tensor_value("config", text, about)


def hparams_start(config, name):
    """The row of the run on the page "HPARAMS"; its columns are the keys of the config."""
    info = SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in flatten_telling(config).items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[key].number_value = value
        else:
            info.hparams[key].string_value = value if isinstance(value, str) else json.dumps(value)
    return hparams_value(
        hparams_metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info)
    )


def hparams_end():
    info = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    return hparams_value(
        hparams_metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info)
    )


def hparams_value(tag, content):
    """TensorBoard reads the metadata alone, but takes no value without a tensor."""
    about = hparams_metadata.create_summary_metadata(content)
    return Summary.Value(tag=tag, metadata=about, tensor=hparams_metadata.NULL_TENSOR)


def tensor_value(tag, content, about):
    return Summary.Value(tag=tag, metadata=about, tensor=make_tensor_proto(content))


def picture(tag, path):
    """The PNG at `path` as it is. Raises OSError where it cannot be read."""
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    return Summary.Value(tag=tag, image=image)
