"""Connection settings: addresses, TLS, tokens and headers, and secrets that must not be shown."""

import asyncio
import pickle

import grpc
import pytest
import trustme
from restormer_client import TLS, AsyncEnhancer, Enhancer, ServerUnavailable
from restormer_client.connection import Connection
from restormer_client.testing import FakeTriton


@pytest.mark.parametrize("client", [Enhancer, AsyncEnhancer])
def test_repr_hides_secrets(client):
    enhancer = client("h:1", tls=TLS(ca="ca.pem"), token="SECRET", headers={"x-key": "SECRET"})
    assert "SECRET" not in repr(enhancer) + repr(enhancer._calls.connection)
    assert repr(enhancer) == f"{client.__name__}('h:1')"


@pytest.mark.parametrize("client", [Enhancer, AsyncEnhancer])
def test_pickle_keeps_all_settings(client):
    enhancer = client("h:1", tls=TLS(ca="ca.pem", cert="c.pem", key="k.pem"), token="t", headers={"a": "b"})
    copy = pickle.loads(pickle.dumps(enhancer))
    assert copy._calls.connection == enhancer._calls.connection


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Enhancer("http://triton:8001"), "host:port without http://"),
        (lambda: Enhancer(" "), "address is empty"),
        (lambda: Enhancer("localhost:80001"), "port 80001"),
        (lambda: Enhancer("[::1]:0"), "port 0"),
        (lambda: Enhancer("ipv4:10.0.0.1:8001,10.0.0.2:65536"), "port 65536"),
        (lambda: Enhancer("triton:8001", token="t"), "plaintext"),
        (lambda: TLS(cert="c.pem"), "mutual TLS needs both"),
        (lambda: TLS(key="k.pem"), "mutual TLS needs both"),
    ],
)
def test_invalid_settings_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_certificate_is_named(tmp_path):
    with (
        Enhancer("h:1", tls=TLS(ca=tmp_path / "absent.pem")) as enhancer,
        pytest.raises(FileNotFoundError, match="absent"),
    ):
        enhancer.enhance(b"x")


def test_multiple_addresses_use_round_robin():
    assert "round_robin" in dict(Connection("dns:///triton:8001").options())["grpc.service_config"]
    assert "grpc.service_config" not in dict(Connection("triton:8001").options())


LOOPBACK = (
    "127.0.0.1", "127.0.0.1:1", "127.3.2.1:1", "127.1:1", "0x7f000001:1", "0.0.0.0:1", "localhost", "LOCALHOST:1",
    "localhost.:1", "ip6-localhost:1", "localhost.localdomain:1", "[::1]", "::1", "[::1]:1", "[0:0:0:0:0:0:0:1]:1",
    "[::ffff:127.0.0.1]:1", "[::1%lo]:1", "[::]:1", "dns:localhost:1", "dns:///Localhost:1", "dns://8.8.8.8/localhost:1",
    "ipv4:127.0.0.1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "unix:///run/triton.sock",
    "unix-abstract:triton",
)  # fmt: skip
OTHERS = (
    "127.example.com:8001", "localhost.example.com:1", "notlocalhost:1", "10.0.0.1:8001", "128.0.0.1:1", "[::2]:1",
    "[::ffff:10.0.0.1]:1", "dns:///h:1", "dns://127.0.0.1/triton:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "unix-box:1",
    "2001:db8::1",
)  # fmt: skip


@pytest.mark.parametrize("url", LOOPBACK)
def test_loopback_bypasses_the_proxy_in_every_spelling(url):
    assert dict(Connection(url).options())["grpc.enable_http_proxy"] == 0


@pytest.mark.parametrize("url", OTHERS)
def test_addresses_that_are_not_loopback(url):
    assert not Connection(url).is_loopback


def test_a_call_to_loopback_does_not_use_the_proxy_of_the_environment(fake, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    port = fake.url.rpartition(":")[2]
    for url in (f"LOCALHOST:{port}", f"ipv4:127.0.0.1:{port}"):
        with Enhancer(url) as enhancer:
            assert enhancer.enhance(b"x", timeout=5) == b"x"


@pytest.mark.parametrize(
    "invalid", [{"token": "a\nb"}, {"token": "gehe\u00efm"}, {"headers": {"a b": "c"}}, {"headers": {"a": "b\nc"}}]
)
def test_invalid_headers_are_named_without_their_value(invalid):
    with pytest.raises(ValueError, match="header '") as caught:
        Enhancer("127.0.0.1:1", **invalid)
    assert "gehe" not in str(caught.value)


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("mutual", [False, True])
def test_tls_from_paths(authority, tmp_path, mutual, asynchronous):
    client, server = authority.issue_cert("client.example"), authority.issue_cert("triton.example")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    client.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair = (server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=mutual)
    files = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"} if mutual else {}
    tls = TLS(ca=tmp_path / "ca.pem", name="triton.example", **files)
    with FakeTriton(credentials=credentials) as fake:
        if asynchronous:
            assert asyncio.run(AsyncEnhancer(fake.url, tls=tls, token="t").enhance(b"x")) == b"x"
        else:
            with Enhancer(fake.url, tls=tls, token="t") as enhancer:
                assert enhancer.enhance(b"x") == b"x"
        assert fake.requests[0].headers["authorization"] == "Bearer t"
        with Enhancer(fake.url) as plain, pytest.raises(ServerUnavailable):
            plain.enhance(b"x", timeout=1)
        if mutual:
            with Enhancer(fake.url, tls=TLS(ca=tls.ca, name=tls.name)) as uncertified, pytest.raises(ServerUnavailable):
                uncertified.enhance(b"x", timeout=1)


def test_token_function_is_called_for_each_call(fake):
    tokens = iter(["one\n", "two\n"])

    async def twice():
        async with AsyncEnhancer(fake.url, token=lambda: next(tokens)) as enhancer:
            await enhancer.enhance(b"x")
            await enhancer.enhance(b"x")

    asyncio.run(twice())
    assert [request.headers["authorization"] for request in fake.requests] == ["Bearer one", "Bearer two"]


def test_channel_options_override_grpc_defaults():
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
