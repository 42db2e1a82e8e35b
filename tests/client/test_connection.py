"""Where the server is, and what must not be seen."""

import pickle

import pytest
from restormer_client import TLS, AsyncEnhancer, Enhancer
from restormer_client.connection import Connection


@pytest.mark.parametrize("client", [Enhancer, AsyncEnhancer])
def test_secrets_are_not_in_a_repr(client):
    enhancer = client("h:1", tls=TLS(ca="ca.pem"), token="SECRET", headers={"x-key": "SECRET"})
    assert "SECRET" not in repr(enhancer) + repr(enhancer._calls.connection)
    assert repr(enhancer) == f"{client.__name__}('h:1')"


@pytest.mark.parametrize("client", [Enhancer, AsyncEnhancer])
def test_it_pickles_with_all_its_settings(client):
    enhancer = client("h:1", tls=TLS(ca="ca.pem", cert="c.pem", key="k.pem"), token="t", headers={"a": "b"})
    again = pickle.loads(pickle.dumps(enhancer))
    assert again._calls.connection == enhancer._calls.connection


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Enhancer("http://triton:8001"), "host:port without http://"),
        (lambda: Enhancer("triton:8001", token="t"), "would travel in the clear"),
        (lambda: TLS(cert="c.pem"), "mutual TLS needs both"),
        (lambda: TLS(key="k.pem"), "mutual TLS needs both"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_certificate_is_named(tmp_path):
    with (
        Enhancer("h:1", tls=TLS(ca=tmp_path / "absent.pem")) as enhancer,
        pytest.raises(FileNotFoundError, match="absent"),
    ):
        enhancer.enhance(b"x")


def test_several_addresses_go_round():
    assert "round_robin" in dict(Connection("dns:///triton:8001").options())["grpc.service_config"]
    assert "grpc.service_config" not in dict(Connection("triton:8001").options())


@pytest.mark.parametrize("url", ["127.0.0.1:1", "localhost:1", "dns:///localhost:1", "[::1]:1"])
def test_loopback_does_not_go_through_a_proxy(url):
    assert dict(Connection(url).options())["grpc.enable_http_proxy"] == 0


def test_the_traps_of_grpc_are_set_aside():
    options = dict(Connection("h:1").options())
    assert options["grpc.enable_retries"] == 0
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == -1
    assert options["grpc.keepalive_time_ms"] > 300_000
    assert options["grpc.max_reconnect_backoff_ms"] <= 2000


def test_tokens_may_change():
    tokens = iter(["one", "two"])
    connection = Connection("127.0.0.1:1", token=lambda: next(tokens), headers={"X-Key": "k"})
    assert connection.metadata() == [("x-key", "k"), ("authorization", "Bearer one")]
    assert connection.metadata()[-1] == ("authorization", "Bearer two")
