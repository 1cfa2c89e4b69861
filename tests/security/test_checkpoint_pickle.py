"""Hostile pickles: nothing in them runs, and the error names the file and what it asked for."""

from __future__ import annotations

import collections
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sfumato.errors import CheckpointError, UnsafeCheckpoint
from sfumato.weights.checkpoint import open_checkpoint
from support.hostile_files import integer, state_dict, storage, tensor, text, torch_zip

OPCODES_OF_CLASSES = {
    "INST": b"(S'{command}'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'{command}'\no.",
    "REDUCE protocol 0": b"cos\nsystem\n(S'{command}'\ntR.",
    "REDUCE through the memo": b"\x80\x02cos\nsystem\nq\x05h\x05(S'{command}'\ntR.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'{command}'\nt\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93(S'{command}'\nt}\x92.",
    "BUILD with __setstate__": b"\x80\x02ctorch\nFloatStorage\n}X\x0c\0\0\0__setstate__cos\nsystem\nsbS'{command}'\nb.",
    "builtins.eval": b'\x80\x02cbuiltins\neval\n(S\'__import__("os").system("{command}")\'\ntR.',
    "__builtin__.exec": b'\x80\x02c__builtin__\nexec\n(S\'__import__("os").system("{command}")\'\ntR.',
    "builtins.getattr": b"\x80\x02cbuiltins\ngetattr\n(cposix\nS'system'\ntR(S'{command}'\ntR.",
    "operator.attrgetter": b"\x80\x02coperator\nattrgetter\n(S'system'\ntR(cos\npath\ntR.",
    "copyreg": b"\x80\x02ccopyreg\n_reconstructor\n(csubprocess\nPopen\ncbuiltins\nobject\nNtR.",
    "torch.load nested": b"\x80\x02ctorch.serialization\nload\n(S'{command}'\ntR.",
    "torch.jit.load": b"\x80\x02ctorch.jit\nload\n(S'{command}'\ntR.",
    "torch.hub": b"\x80\x02ctorch.hub\nload\n(S'{command}'\ntR.",
    "runpy": b"\x80\x02crunpy\n_run_code\n(S'{command}'\ntR.",
    "pickle in a pickle": b"\x80\x02c_pickle\nloads\n(S'{command}'\ntR.",
    "numpy object array": b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01bt R.",
    "importlib": b"\x80\x02cimportlib\nimport_module\n(S'os'\ntR.",
    "dotted name": b"\x80\x04\x8c\x05torch\x8c\x19_utils._rebuild_tensor_v2\x93.",
    "dotted into os": b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93(S'{command}'\ntR.",
    "allowed name, other module": b"\x80\x02ctorch.evil\n_rebuild_tensor_v2\n)R.",
    "STACK_GLOBAL of a memo": b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93(S'{command}'\ntR.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "STACK_GLOBAL of a global": b"\x80\x04ccollections\nOrderedDict\n\x8c\x06system\x93.",
    "name with terminal codes": b"\x80\x04\x8c\x09os\n\x1b[2J\r\n\x8c\x06system\x93.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pstorage\n.",
    "BINPERSID of a number": b"\x80\x02K\x01Q.",
    "BINPERSID of another kind": b"\x80\x02(X\x06\0\0\0modulecos\nsystem\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ.",
    "call of a storage class": b"\x80\x02ctorch\nFloatStorage\n(K\x04tR.",
    "call of text": b"\x80\x02X\x02\x00\x00\x00os)R.",
    "OrderedDict of arguments": b"\x80\x02ccollections\nOrderedDict\n(](K\x01K\x02\x86etR.",
    "Lightning's class, made": b"\x80\x02cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)\x81.",
    "Lightning's class, called": b"\x80\x02cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)R.",
    "TorchScript": b"\x80\x02c__torch__\nModule\n)\x81.",
    "set": b"\x80\x04\x8f(K\x01\x90.",
    "bytearray": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
    "buffer": b"\x80\x05\x97.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "append to text": b"\x80\x02X\x01\x00\x00\x00aK\x01a.",
    "item of a list": b"\x80\x02]K\x01K\x02s.",
    "attributes of a list": b"\x80\x02]}b.",
}


@pytest.mark.parametrize("wrap", [torch_zip, lambda program: program], ids=["zip", "bare"])
@pytest.mark.parametrize("case", OPCODES_OF_CLASSES)
def test_nothing_runs(case: str, wrap: Callable[[bytes], bytes], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "model.ckpt"
    path.write_bytes(wrap(OPCODES_OF_CLASSES[case].replace(b"{command}", f"touch {canary}".encode())))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert not canary.exists()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.removeprefix(str(path)).isprintable()
    if wrap is torch_zip:
        assert isinstance(caught.value, UnsafeCheckpoint)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["os", "builtins", "subprocess", "collections"])
def test_objects_of_python_pickled_in_every_protocol(module: str, protocol: int, tmp_path: Path) -> None:
    """What Python itself writes for an object whose `__reduce__` calls something."""
    functions = {
        "os": (__import__("os").system, "os.system posix.system nt.system"),
        "builtins": (eval, "builtins.eval __builtin__.eval"),
        "subprocess": (__import__("subprocess").Popen, "subprocess.Popen commands.Popen"),
        "collections": (collections.Counter, "collections.Counter"),
    }
    function, names = functions[module]
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> object:
            return function, (f"touch {canary}",)

    path = tmp_path / "model.ckpt"
    path.write_bytes(torch_zip(pickle.dumps({"state_dict": {"weight": Evil()}}, protocol=protocol)))
    with pytest.raises(UnsafeCheckpoint) as caught:
        open_checkpoint(path)
    assert not canary.exists()
    assert any(name in str(caught.value) for name in names.split())


def test_a_model_torch_saved_as_an_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UnsafeCheckpoint, match=r"module\.pt.*torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(path)


SIZE_A_TUPLE = tensor().replace(integer(0) + b"(" + integer(4), integer(0) + b"((K\x01t")
OF_TEXT = b"ctorch._utils\n_rebuild_tensor_v2\n(" + text("storage") + integer(0) + b"))tR"
HOSTILE_VIEWS = {
    "beyond the storage": (tensor((5,), (1,)), "outside it"),
    "beyond by offset": (tensor((4,), (1,), 1), "outside it"),
    "beyond by stride": (tensor((2,), (4,)), "outside it"),
    "negative offset": (tensor((4,), (1,), -1), "strides -1"),
    "negative stride": (tensor((2,), (-1,), 3), "strides -1"),
    "negative size": (tensor((-1,), (1,)), "strides -1"),
    "2^63 size": (tensor((2**63,), (0,)), "strides 9223372036854775808"),
    "2^62 stride": (tensor((2,), (2**62,)), "strides 4611686018427387904"),
    "wrapping product": (tensor((2**33, 2**33), (0, 0)), "absurdly large"),
    "huge beside zero": (tensor((0, 2**47, 2**47), (0, 0, 0)), "absurdly large"),
    "repeating itself": (tensor((1000,), (0,)), "repeats them to grow"),
    "more strides than sizes": (tensor((4,), (1, 1)), "1 sizes and 2 strides"),
    "a hundred dimensions": (tensor((1,) * 100, (1,) * 100), "100 sizes"),
    "storage larger than its bytes": (tensor((8,), (1,), numel=8), "claims 8 elements and has 16 bytes"),
    "storage of 2^60": (tensor((4,), (1,), numel=2**60), "claims 1152921504606846976"),
    "negative storage": (tensor((0,), (1,), numel=-1), "claims -1"),
    "unknown storage": (tensor(kind="QInt8Storage"), "torch.QInt8Storage"),
    "missing storage": (tensor(key="7"), "'7' is not in the zip"),
    "storage by a path": (tensor(key="../../etc/passwd"), "is not in the zip"),
    "two dtypes of one storage": (tensor((2,), (1,)) + b"0" + tensor((2,), (1,), kind="HalfStorage"), "disagree"),
    "a tuple for a size": (
        SIZE_A_TUPLE,
        "strides a tuple",
    ),
    "a tensor of text": (OF_TEXT, "the text 'storage'"),
    "a parameter of a storage": (b"ctorch._utils\n_rebuild_parameter\n(" + storage() + b"\x88)tR", "from a storage"),
}


@pytest.mark.parametrize("case", HOSTILE_VIEWS)
def test_views_outside_their_storage_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    value, reason = HOSTILE_VIEWS[case]
    path.write_bytes(torch_zip(state_dict(value), {"0": bytes(16)}))
    with pytest.raises(CheckpointError, match=rf"model\.ckpt: .*{re.escape(reason)}") as caught:
        open_checkpoint(path)
    assert len(str(caught.value)) < 600


def test_the_same_file_without_the_trick_opens(tmp_path: Path) -> None:
    """The generators above make files that are right but for the one thing each test changes."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(torch_zip(state_dict(tensor(), tensor((2, 2), (1, 2))), {"0": struct.pack("<4f", 1, 2, 3, 4)}))
    with open_checkpoint(path) as checkpoint:
        torch.testing.assert_close(checkpoint.read("w0"), torch.tensor([1.0, 2, 3, 4]))
        torch.testing.assert_close(checkpoint.read("w1"), torch.tensor([[1.0, 3], [2, 4]]))
    assert torch.load(path, weights_only=True)["w1"].tolist() == [[1.0, 3], [2, 4]]


LAUGHS = b"".join(b"0](h%ch%ceq%c" % (level, level, level + 1) for level in range(30))
DAMAGED = {
    "empty": b"",
    "no STOP": b"\x80\x02}",
    "cut in a number": b"\x80\x02\x8a\x08\x00",
    "cut in text": b"\x80\x02X\xff\xff\xff\x7fabc",
    "text of 2^63 bytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"abc",
    "LONG4 bomb": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "LONG4 negative": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "LONG of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "INT of letters": b"Iabc\n.",
    "not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "unknown opcode": b"\x80\x02\xff.",
    "protocol 9": b"\x80\x09}.",
    "GET of nothing": b"\x80\x02h\x07.",
    "pop from nothing": b"0.",
    "mark popped by TUPLE1": b"(\x85.",
    "no mark": b"K\x01t.",
    "odd items": b"\x80\x02}(K\x01u.",
    "two results": b"\x80\x02}}.",
    "no result": b"\x80\x02.",
    "a line without an end": b"c" + b"a" * 10_000,
    "bytes after the end": b"\x80\x02}.\x80\x02}.",
    "nested ever deeper": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "contains itself": b"\x80\x02]q\x00h\x00a.",
    "a billion laughs": b"\x80\x02]q\x00" + LAUGHS + b".",
    "a single tensor": b"\x80\x02" + tensor() + b".",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_pickles_are_an_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(torch_zip(DAMAGED[case], {"0": bytes(16)}))
    with pytest.raises(CheckpointError, match=r"model\.ckpt: ."):
        open_checkpoint(path)


def test_every_truncation_and_every_flipped_byte_ends_in_an_error_or_a_readable_file(tmp_path: Path) -> None:
    """Fuzzing around a file of torch's own: no exception but ours, no view outside the file."""
    path = tmp_path / "model.ckpt"
    torch.save(
        {"state_dict": {"a": torch.arange(12.0).reshape(3, 4).t(), "b": torch.ones(2, dtype=torch.bfloat16)}}, path
    )
    whole = path.read_bytes()
    variants = [whole[:size] for size in range(1, len(whole), 7)]
    for position in range(0, len(whole), 3):
        for change in (0xFF, 0x01):
            changed = bytearray(whole)
            changed[position] ^= change
            variants.append(bytes(changed))
    opened = 0
    for variant in variants:
        path.write_bytes(variant)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.read(name).float().sum()
                opened += 1
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
    assert 0 < opened < len(variants)
