"""Writes Triton's gRPC schema into `proto/`, for languages that have no Triton client.

The tritonclient wheel holds the schema only as generated Python. This prints it as the .proto files that it was
generated from (without their comments), which any protobuf compiler takes. They are NVIDIA's, BSD-3-Clause, as
tritonclient is.

    python make_proto.py
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

FOLDER = Path(__file__).with_name("proto")
_Field = descriptor_pb2.FieldDescriptorProto
_Message = descriptor_pb2.DescriptorProto


def _lines(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    yield f"// Triton's schema, from tritonclient {version('tritonclient')}. Copyright NVIDIA, BSD-3-Clause."
    yield f'syntax = "{file.syntax}";'
    yield f"package {file.package};"
    yield from (f'import "{name}";' for name in file.dependency)
    for service in file.service:
        yield f"service {service.name} {{"
        for rpc in service.method:
            asks = ("stream " if rpc.client_streaming else "") + rpc.input_type
            gets = ("stream " if rpc.server_streaming else "") + rpc.output_type
            yield f"  rpc {rpc.name}({asks}) returns ({gets}) {{}}"
        yield "}"
    for enum in file.enum_type:
        yield from _enum(enum, "")
    for message in file.message_type:
        yield from _message(message, "")


def _enum(enum: descriptor_pb2.EnumDescriptorProto, indent: str) -> Iterator[str]:
    yield f"{indent}enum {enum.name} {{"
    yield from (f"{indent}  {value.name} = {value.number};" for value in enum.value)
    yield indent + "}"


def _message(message: _Message, indent: str) -> Iterator[str]:
    yield f"{indent}message {message.name} {{"
    inner = indent + "  "
    for enum in message.enum_type:
        yield from _enum(enum, inner)
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for nested in message.nested_type:
        if nested.name not in maps:
            yield from _message(nested, inner)
    for index, oneof in enumerate(message.oneof_decl):
        yield f"{inner}oneof {oneof.name} {{"
        members = [f for f in message.field if f.HasField("oneof_index") and f.oneof_index == index]
        yield from (f"{inner}  {_type(field)} {field.name} = {field.number};" for field in members)
        yield inner + "}"
    for field in message.field:
        if field.HasField("oneof_index"):
            continue
        kind = _type(field)
        entry = maps.get(field.type_name.rsplit(".", 1)[-1])
        if entry is not None:
            kind = f"map<{', '.join(_type(part) for part in entry.field)}>"
        elif field.label == _Field.LABEL_REPEATED:
            kind = f"repeated {kind}"
        yield f"{inner}{kind} {field.name} = {field.number};"
    yield indent + "}"


def _type(field: _Field) -> str:
    return field.type_name or _Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def schema() -> dict[str, str]:
    """Returns the .proto files by name, as the installed tritonclient has them."""
    files = {}
    for module in (model_config_pb2, service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files[file.name] = "\n".join(_lines(file)) + "\n"
    return files


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in schema().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
