"""Calls a service as people with grpcio do: by stubs, by reflection, by grpcio-health-checking; and reads its errors.

Usage: check_grpc.py SERVER    a service with a simulated host, to which this client is an admin
"""

import importlib
import pkgutil
import sys

import blkpilot.v1
import grpc
from blkpilot.v1 import environment_service_pb2 as environments
from blkpilot.v1 import environment_service_pb2_grpc as environments_rpc
from blkpilot.v1 import observation_pb2
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

# What an empty request may be answered. UNIMPLEMENTED or INTERNAL, say, would be a method that is not there, or broken.
ANSWERS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
PATIENCE_S = 30
HEALTH = "grpc.health.v1.Health"
REFLECTION = {f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")}


class ReflectionV1(ProtoReflectionDescriptorDatabase):
    """grpcio-reflection's client speaks v1alpha. v1 is another path for the same messages."""

    def __init__(self, channel: grpc.Channel):
        super().__init__(channel)
        self._stub = self
        self.ServerReflectionInfo = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )


def stub_modules():
    """The stubs of each .proto that has services: messages and calls."""
    for module in pkgutil.iter_modules(blkpilot.v1.__path__, "blkpilot.v1."):
        if module.name.endswith("_service_pb2"):
            yield importlib.import_module(module.name), importlib.import_module(f"{module.name}_grpc")
    yield operations_pb2, operations_pb2_grpc


def services() -> dict:
    """Descriptors of the services that stubs were made of, by their full names."""
    found = (service for messages, _ in stub_modules() for service in messages.DESCRIPTOR.services_by_name.values())
    return {service.full_name: service for service in found}


def ask(call, method, request) -> str:
    """The code that one request is answered with, in whichever way the method streams."""
    try:
        answer = call(iter([request]) if method.client_streaming else request, timeout=PATIENCE_S)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
        return "OK"
    except grpc.RpcError as error:
        if not method.full_name.startswith("grpc."):
            assert info_of(error).domain == "blkpilot", (method.full_name, error)
        return error.code().name


def info_of(error: grpc.RpcError):
    """The ErrorInfo of a refusal."""
    return detail(error, error_details_pb2.ErrorInfo)


def detail(error: grpc.RpcError, kind):
    """The detail of this kind, as grpcio-status unpacks it."""
    status = rpc_status.from_call(error)
    assert status is not None and status.code == error.code().value[0], error
    for packed in status.details:
        unpacked = kind()
        if packed.Unpack(unpacked):
            return unpacked
    raise AssertionError(f"no {kind.DESCRIPTOR.full_name} in {status}")


def check_stubs(channel: grpc.Channel) -> None:
    """Every method of every service, and an episode of CartPole."""
    methods = 0
    for messages, calls in stub_modules():
        for service in messages.DESCRIPTOR.services_by_name.values():
            stub = getattr(calls, f"{service.name}Stub")(channel)
            for method in service.methods:
                request = message_factory.GetMessageClass(method.input_type)()
                code = ask(getattr(stub, method.name), method, request)
                assert code in ANSWERS, (method.full_name, code)
                methods += 1
    print(f"stubs: {methods} methods of {len(services())} services answer")

    stub = environments_rpc.EnvironmentServiceStub(channel)
    cart = environments.Environment(cart_pole=environments.CartPole())
    name = stub.CreateEnvironment(environments.CreateEnvironmentRequest(environment=cart)).name
    stub.Reset(environments.ResetRequest(name=name, seed=1))
    push = observation_pb2.JointAction(disks=observation_pb2.LevelTable(rows=1, heads=1, levels=[1]))
    steps, fell = 0, False
    while not fell and steps < 500:
        fell = stub.Step(environments.StepRequest(name=name, action=push)).terminated
        steps += 1
    # Pushed one way only, it falls at once.
    assert fell and 7 < steps < 12, steps
    stub.DeleteEnvironment(environments.DeleteEnvironmentRequest(name=name))
    print(f"stubs: an episode of CartPole, pushed one way only, ended after {steps} steps")


def check_reflection(channel: grpc.Channel, version: str, database: ProtoReflectionDescriptorDatabase) -> None:
    """All services are listed, each method is described as its .proto does, and one can be called without stubs."""
    listed = set(database.get_services())
    wanted = services().keys() | REFLECTION | {HEALTH}
    assert listed == wanted, (version, listed ^ wanted)
    pool = descriptor_pool.DescriptorPool(database)
    described = {name: pool.FindServiceByName(name) for name in listed}
    for name, service in services().items():
        assert shape(described[name]) == shape(service), (version, name)
    called = call_dynamically(channel, described["blkpilot.v1.TunerService"].methods_by_name["ListHosts"], {})
    hosts = [host["name"] for host in called["hosts"]]
    assert hosts == ["hosts/local"], called
    create = described["blkpilot.v1.EnvironmentService"].methods_by_name["CreateEnvironment"]
    request = {"environment": {"simHost": {"preset": "mixed"}}, "validateOnly": True}
    assert call_dynamically(channel, create, request)["count"] == 1
    print(f"reflection {version}: {len(listed)} services listed and described, two methods called without stubs")


def shape(service) -> list:
    """What a call of each method is made of."""
    fields = lambda message: [(f.name, f.number, f.type, f.is_repeated) for f in message.fields]
    return [
        (m.name, m.client_streaming, m.server_streaming, m.input_type.full_name, fields(m.input_type), m.output_type.full_name,
         fields(m.output_type))
        for m in service.methods
    ]


def call_dynamically(channel: grpc.Channel, method, request: dict) -> dict:
    """A call of whatever reflection has described, in and out as JSON."""
    asked, answered = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=asked.SerializeToString,
        response_deserializer=answered.FromString,
    )
    return json_format.MessageToDict(call(json_format.ParseDict(request, asked()), timeout=PATIENCE_S))


def check_health(channel: grpc.Channel) -> None:
    """Check and Watch say of the whole and of each service that it serves, and of none that it does what it is not."""
    stub = health_pb2_grpc.HealthStub(channel)
    names = ["", *services()]
    for name in names:
        request = health_pb2.HealthCheckRequest(service=name)
        assert stub.Check(request, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.SERVING, name
        watch = stub.Watch(request, timeout=PATIENCE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING, name
        watch.cancel()
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="blkpilot.v1.Nothing"), timeout=PATIENCE_S)
        raise AssertionError("a service that there is not has a health")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    print(f"health: Check and Watch of {len(names)} names")


def check_errors(channel: grpc.Channel) -> None:
    """One bad request with two wrong fields: which, why, and the stable reason."""
    stub = environments_rpc.EnvironmentServiceStub(channel)
    cart = environments.Environment(cart_pole=environments.CartPole(), count=5000)
    request = environments.CreateEnvironmentRequest(environment=cart, environment_id="Not An Id")
    try:
        stub.CreateEnvironment(request, timeout=PATIENCE_S)
        raise AssertionError("it was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        wrong = [violation.field for violation in detail(error, error_details_pb2.BadRequest).field_violations]
        assert wrong and set(wrong) <= {"environment_id", "environment.count"}, wrong
        info = info_of(error)
        print(f"errors: {info.reason} of {info.domain}, in {', '.join(wrong)}: {error.details()}")


def main() -> None:
    (server,) = sys.argv[1:]
    # Of a Unix socket gRPC would make an authority that HTTP/2 does not allow.
    with grpc.insecure_channel(server, [("grpc.default_authority", "localhost")]) as channel:
        check_stubs(channel)
        check_reflection(channel, "v1", ReflectionV1(channel))
        check_reflection(channel, "v1alpha", ProtoReflectionDescriptorDatabase(channel))
        check_health(channel)
        check_errors(channel)
    print(f"grpcio {grpc.__version__}")


if __name__ == "__main__":
    main()
