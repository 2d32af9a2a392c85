"""Checkpoints in one file and in shards, valid and invalid."""

import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, TensorProperties

from lit_transfusion.errors import InputError
from lit_transfusion.generation.checkpoint import KEY, _Index, read_checkpoint
from lit_transfusion.generation.pipeline import Pipeline

forms = pytest.mark.parametrize("sharded", [False, True], ids=["file", "shards"])
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # when writing shards


@forms
def test_a_checkpoint_contains_the_whole_pipeline(
    make_pipeline, save_checkpoint, assert_same_outputs, tmp_path, sharded
):
    pipeline = make_pipeline()
    path = save_checkpoint(tmp_path / "run.ckpt", pipeline, sharded=sharded)
    assert_same_outputs(pipeline, Pipeline.from_pretrained(path))


@forms
@pytest.mark.parametrize("ema", [True, False])
def test_averaged_weights_are_used_if_asked_for_and_available(make_pipeline, save_checkpoint, tmp_path, ema, sharded):
    pipeline = make_pipeline()
    path = save_checkpoint(tmp_path / "run.ckpt", pipeline, averages=1.0, sharded=sharded)
    loaded = Pipeline.from_pretrained(path, ema=ema).net.state_dict()
    for name, weight in pipeline.net.state_dict().items():
        assert torch.equal(loaded[name], weight + 1 if ema else weight), name


def test_shards_hold_what_a_file_holds(make_pipeline, save_checkpoint, tmp_path, recwarn):
    pipeline = make_pipeline()
    shards = save_checkpoint(tmp_path / "shards", pipeline, averages=0.5, sharded=True)
    recwarn.clear()
    checkpoint, other = read_checkpoint(shards), read_checkpoint(save_checkpoint(tmp_path / "file", pipeline, 0.5))
    assert not recwarn
    assert checkpoint.keys() == other.keys() - {"optimizer_states"}
    assert checkpoint["state_dict"].keys() == other["state_dict"].keys()
    for name, weight in checkpoint["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name]), name


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"none\.ckpt not found"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="not found"):
        read_checkpoint(tmp_path)  # a folder


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"base: default.yaml\n",
        b"PK\x03\x04 a zip file cut short",
        b"\x89PNG\r\n\x1a\n",
        bytes(99),
        b"\x80\x02",  # the start of a pickle; torch raises a different type of error for each from here on
        b"\x80\x02}q\x00(X",
        b"r\xdd]\x93\x08",
        b"U\x02\x86Jt",
        b"j\xf1ua\x8d",
    ],
    ids=lambda content: repr(content[:8]),
)
def test_a_file_that_is_not_a_checkpoint(tmp_path, content):
    """The error is one line that names the file, for any content."""
    path = tmp_path / "wrong.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"wrong\.ckpt .*checkpoint") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_truncated_checkpoint(make_pipeline, save_checkpoint, tmp_path):
    """A full disk leaves such a file."""
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"\.ckpt cannot be read"):
        read_checkpoint(path)


class Touch:
    """Runs code when it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_that_would_run_code(tmp_path):
    torch.save({KEY: Touch(tmp_path / "touched")}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "touched").exists()


class GetAttribute:
    """Pickled as a call of `getattr`, as Python 3.11.0 to 3.11.3 pickle the member of an Enum."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


def test_an_index_of_any_python_is_read():
    pickled = pickle.dumps(GetAttribute(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT"))
    assert _Index(io.BytesIO(pickled)).load() is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT


@pytest.mark.parametrize(
    ("owner", "name"), [(torch.Size, "count"), (_MEM_FORMAT_ENCODING, "__subclasses__"), (TensorProperties, "mro")]
)
def test_an_index_cannot_read_other_attributes(owner, name):
    with pytest.raises(pickle.UnpicklingError, match=f"{name}.*not allowed"):
        _Index(io.BytesIO(pickle.dumps(GetAttribute(owner, name)))).load()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2)], ids=["dict", "list", "tensor"])
def test_a_checkpoint_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other\.ckpt is not a checkpoint of lit_transfusion"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("part", [".metadata", "meta.pt", "__0_0.distcp"])
def test_truncated_shards(make_pipeline, save_checkpoint, tmp_path, part):
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline(), sharded=True)
    (path / part).write_bytes((path / part).read_bytes()[:1000])
    with pytest.raises(InputError, match=r"run\.ckpt cannot be read") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_incomplete_shards(make_pipeline, save_checkpoint, tmp_path):
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline(), sharded=True)
    for last in ("meta.pt", ".metadata"):
        (path / last).unlink()
        with pytest.raises(InputError, match=r"run\.ckpt .*earlier checkpoint"):
            read_checkpoint(path)
        with pytest.raises(InputError, match=r"run\.ckpt .*earlier checkpoint"):
            Pipeline.from_pretrained(path)


@pytest.mark.parametrize(
    "name", ["os\nmknod", "io\nopen_code", "torch\nos.mknod", "torch.hub\nload", "torch.serialization\nos"]
)
def test_shards_whose_index_would_run_code(make_pipeline, save_checkpoint, tmp_path, name):
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline(), sharded=True)
    touched = str(tmp_path / "touched")
    call = b"\x80\x04c" + name.encode() + b"\n\x8c" + bytes([len(touched)]) + touched.encode() + b"\x85R."
    (path / ".metadata").write_bytes(call)  # a pickle that calls `name` with the path of a file
    with pytest.raises(InputError, match=r"run\.ckpt .*index"):
        read_checkpoint(path)
    assert not (tmp_path / "touched").exists()


@forms
def test_a_checkpoint_without_weights(make_pipeline, tmp_path, sharded):
    path = tmp_path / "run.ckpt"
    if sharded:
        dcp.save({"state_dict": {"other.weight": torch.zeros(2)}}, checkpoint_id=path, no_dist=True)
        torch.save({KEY: make_pipeline().describe()}, path / "meta.pt")
    else:
        torch.save({"state_dict": {"other.weight": torch.zeros(2)}, KEY: make_pipeline().describe()}, path)
    with pytest.raises(InputError, match=r"run\.ckpt .*no weights.*state_dict"):
        read_checkpoint(path)


def test_a_checkpoint_whose_weights_do_not_fit(make_pipeline, save_checkpoint, tmp_path):
    """A change of a class after the run leads to this."""
    description = make_pipeline("unet").describe()
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline("linear"), **{KEY: description})
    with pytest.raises(InputError, match=r"run\.ckpt: its weights .*Missing") as error:
        Pipeline.from_pretrained(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_with_a_class_of_another_module_names_it_and_what_to_do(make_pipeline, save_checkpoint, tmp_path):
    description = make_pipeline().describe()
    description["mask"]["class_path"] = "masks_of_nobody.Window"
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline(), **{KEY: description})
    with pytest.raises(InputError, match=r"run\.ckpt: masks_of_nobody\.Window .* --import_module masks_of_nobody"):
        Pipeline.from_pretrained(path)
