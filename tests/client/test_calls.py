"""Single calls against a fake server: options, deadlines, retries and errors."""

import asyncio
import gc
import inspect
import pickle
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from restormer_client import (
    AsyncEnhancer,
    DeadlineExceeded,
    EnhanceError,
    Enhancer,
    InvalidOption,
    InvalidPhotograph,
    InvalidTensor,
    ModelNotReady,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from restormer_client.testing import FakeTriton

from tests.conftest import free_port

PHOTO = b"a photograph"


def all_subclasses(kind):
    """Return a class and all its subclasses."""
    return [kind, *(each for child in kind.__subclasses__() for each in all_subclasses(child))]


def test_only_given_options_are_sent_as_text(fake, enhancer):
    enhancer.enhance(PHOTO, format="webp", quality=80, size=512, strength=0.25, gps="strip", tiled=True)
    enhancer.enhance(PHOTO)
    custom, plain = fake.requests
    assert custom.parameters == {
        "format": "webp",
        "quality": "80",
        "size": "512",
        "strength": "0.25",
        "gps": "strip",
    }
    assert (custom.model, plain.model) == ("enhance_tiled", "enhance")
    assert plain.parameters == {}


def test_timeout_is_sent_as_queue_timeout(fake, enhancer):
    enhancer.enhance(PHOTO, timeout=7)
    enhancer.enhance(PHOTO)
    assert 6 < fake.requests[0].timeout <= 7
    assert 29 < fake.requests[1].timeout <= 30


def test_deadline_ends_the_call(fake, enhancer):
    fake.answers.append(DeadlineExceeded)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        enhancer.enhance(PHOTO, timeout=0.3)
    assert time.monotonic() - started < 5
    assert caught.value.model == "enhance"


def test_priorities_are_sent(fake, enhancer):
    enhancer.enhance(PHOTO)
    enhancer.enhance(PHOTO, priority="bulk")
    list(enhancer.map([PHOTO]))
    assert [request.priority for request in fake.requests] == [1, 2, 2]


@pytest.mark.parametrize(
    "invalid",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": 1e13},
        {"priority": "high"},
    ],
)
def test_invalid_arguments_are_rejected_before_sending(fake, enhancer, invalid):
    with pytest.raises(ValueError, match=next(iter(invalid))):
        enhancer.enhance(PHOTO, **invalid)
    with pytest.raises(ValueError, match=next(iter(invalid))):
        enhancer.map([PHOTO], **invalid)
    assert not fake.requests


def test_headers_and_token_are_sent(fake):
    with Enhancer(fake.url, token="t", headers={"X-Key": "k"}) as enhancer:
        enhancer.enhance(PHOTO)
    assert fake.requests[0].headers["authorization"] == "Bearer t"
    assert fake.requests[0].headers["x-key"] == "k"


@pytest.mark.parametrize("size", [300_000, 6_000_000])
def test_broken_connections_are_retried_at_any_request_size(fake, enhancer, size):
    """gRPC's own retry does not cover requests larger than its buffer."""
    fake.answers.extend([ServerUnavailable, ServerUnavailable])
    photo = bytes(size)
    assert enhancer.enhance(photo) == photo
    assert len(fake.requests) == 3


def test_client_reconnects_to_a_restarted_server(fake, enhancer):
    enhancer.enhance(PHOTO)
    fake.stop()
    threading.Timer(1.0, fake.start).start()
    assert enhancer.enhance(PHOTO, timeout=30) == PHOTO


def test_retries_end_with_the_deadline():
    with Enhancer(f"127.0.0.1:{free_port()}") as unreachable, pytest.raises(ServerUnavailable) as caught:
        unreachable.enhance(PHOTO, timeout=1)
    assert caught.value.attempts > 1
    assert unreachable.url in str(caught.value)


def test_retries_of_one_photograph_are_limited(fake, enhancer):
    fake.answers.extend([ServerUnavailable] * 10)
    with pytest.raises(ServerUnavailable) as caught:
        enhancer.enhance(PHOTO)
    assert caught.value.attempts == len(fake.requests) == 3


def test_model_without_versions_is_retried_until_the_deadline(fake, enhancer):
    """A server that starts or stops has no versions for a while."""

    def no_versions(request):
        raise ModelNotReady("has no available versions")

    fake.answers.extend([no_versions, no_versions])
    assert enhancer.enhance(PHOTO) == PHOTO
    fake.answers.extend([no_versions] * 100)
    with pytest.raises(ModelNotReady) as caught:
        enhancer.enhance(PHOTO, timeout=1)
    assert caught.value.attempts > 1


@pytest.mark.parametrize("kind", [Overloaded, InvalidPhotograph, InvalidOption, ModelNotReady, ServerError])
def test_other_errors_are_not_retried(fake, enhancer, kind):
    fake.answers.append(kind)
    with pytest.raises(kind) as caught:
        enhancer.enhance(PHOTO)
    assert type(caught.value) is kind
    assert caught.value.attempts == len(fake.requests) == 1


def test_retry_after_follows_the_duration_of_recent_calls(fake, enhancer):
    fake.answers.extend([lambda request: time.sleep(0.2) or b"done", Overloaded])
    enhancer.enhance(PHOTO)
    with pytest.raises(Overloaded) as caught:
        enhancer.enhance(PHOTO)
    assert 0.2 <= caught.value.retry_after < 5
    fake.answers.append(Overloaded)
    with pytest.raises(Overloaded) as other:
        enhancer.enhance(PHOTO, tiled=True)  # no call to this model has been timed
    assert other.value.retry_after >= 1


def test_core_returns_the_tensor(fake, enhancer):
    tensor = np.random.default_rng(0).random((2, 3, 512, 512), np.float32)
    answer = enhancer.core(tensor)
    assert np.array_equal(answer, tensor)
    assert answer.flags.writeable
    strided = tensor[:, ::-1]
    assert np.array_equal(enhancer.core(strided), strided)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((1, 3, 512, 512)), "float64"),
        (np.zeros((3, 512, 512), np.float32), r"\[3, 512, 512\]"),
        (np.zeros((0, 3, 512, 512), np.float32), r"\[0, 3, 512, 512\]"),
        (np.zeros((1, 3, 256, 512), np.float32), r"takes \[-1, 3, 512, 512\]"),
        ([1.0], "list"),
    ],
)
def test_core_rejects_wrong_tensors(enhancer, tensor, message):
    with pytest.raises(InvalidTensor, match=message):
        enhancer.core(tensor)


def test_health_and_readiness_name_missing_models(fake, enhancer):
    assert enhancer.health().ready
    enhancer.wait_until_ready(1)
    fake.missing = {"enhance", "postprocess"}
    assert all(name in enhancer.health().reason for name in fake.missing)
    with pytest.raises(ModelNotReady, match="postprocess") as caught:
        enhancer.wait_until_ready(3)
    assert caught.value.model == "postprocess"


def test_health_of_an_unreachable_server_does_not_raise():
    with Enhancer(f"127.0.0.1:{free_port()}") as unreachable:
        health = unreachable.health(timeout=2)
        assert not health.live
        assert unreachable.url in health.reason
        with pytest.raises(ServerUnavailable, match="ready"):
            unreachable.wait_until_ready(1)


def test_metadata(enhancer):
    metadata = enhancer.metadata()
    assert metadata.name == "triton"
    assert metadata.models["restormer"]["input"] == ("FP32", (-1, 3, 512, 512))
    assert metadata.versions["restormer"] == ("1",)


def test_closed_client_raises(fake):
    enhancer = Enhancer(fake.url)
    enhancer.enhance(PHOTO)
    enhancer.close()
    with pytest.raises(RuntimeError, match="closed"):
        enhancer.enhance(PHOTO)


def test_close_ends_calls_in_flight(fake, enhancer):
    received, release = threading.Event(), threading.Event()
    fake.answers.append(lambda request: (received.set(), release.wait(30), b"")[-1])
    caught = []

    def send():
        try:
            enhancer.enhance(PHOTO)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=send)
    thread.start()
    received.wait(30)
    enhancer.close()
    thread.join(30)
    release.set()
    assert len(caught) == 1
    assert "closed" in caught[0]


def test_close_ends_awaited_calls_in_flight(fake):
    release = threading.Event()
    fake.answers.append(lambda request: (release.wait(30), b"")[-1])

    async def close_during_a_call():
        enhancer = AsyncEnhancer(fake.url)
        task = asyncio.create_task(enhancer.enhance(PHOTO))
        while not fake.requests:
            await asyncio.sleep(0.01)
        await enhancer.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task

    asyncio.run(close_during_a_call())
    release.set()


def test_async_client_works_in_several_event_loops(fake):
    enhancer = AsyncEnhancer(fake.url)
    assert [asyncio.run(enhancer.enhance(PHOTO)) for _ in range(3)] == [PHOTO] * 3
    assert asyncio.run(pickle.loads(pickle.dumps(enhancer)).enhance(PHOTO)) == PHOTO


@pytest.mark.parametrize("kind", [kind for kind in all_subclasses(EnhanceError) if kind is not InvalidTensor])
def test_fake_raises_every_error(fake, enhancer, kind):
    """Each error of the hierarchy is raised in the client with its type and message."""
    fake.answers.extend([kind("a word"), kind("a word"), kind("a word")])
    with pytest.raises(EnhanceError) as caught:
        enhancer.enhance(PHOTO, timeout=2)
    assert type(caught.value) is (ServerError if kind is EnhanceError else kind)
    assert "a word" in str(caught.value) or kind is DeadlineExceeded


def test_fake_answers_core_and_hides_missing_models(fake, enhancer):
    tensor = np.ones((1, 3, 512, 512), np.float32)
    fake.answers.extend([bytes(tensor.nbytes), InvalidTensor("no")])
    assert not enhancer.core(tensor).any()
    with pytest.raises(InvalidTensor, match="no"):
        enhancer.core(tensor)
    assert fake.requests[0].photo == tensor.tobytes()
    fake.missing = {"enhance"}
    with pytest.raises(ModelNotReady):
        enhancer.enhance(PHOTO)


def test_results_do_not_keep_photographs_alive(fake, enhancer):
    """The frames of an error hold the photograph, and callers may keep results."""

    class Photo(bytearray):
        pass

    fake.answers.extend([InvalidPhotograph] * 4)
    references, kept = [], []

    def photos():
        for _ in range(4):
            photo = Photo(b"x" * 1000)
            references.append(weakref.ref(photo))
            yield photo

    gc.disable()
    try:
        for result in enhancer.map(photos(), max_in_flight=1):
            kept.append(result.error)
            del result
        assert [type(error) for error in kept] == [InvalidPhotograph] * 4
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()


def test_client_connects_on_first_use():
    enhancer = Enhancer("host.invalid:1")
    assert not enhancer._channels


def test_one_client_serves_many_threads(fake, enhancer):
    barrier = threading.Barrier(50)
    correct = []

    def send(number):
        barrier.wait()
        correct.append(enhancer.enhance(b"%d" % number) == b"%d" % number)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert correct == [True] * 50
    assert len(enhancer._channels) == 1


def test_both_clients_have_the_same_documented_methods():
    for name in ("enhance", "core", "health", "wait_until_ready", "metadata"):
        blocking, awaitable = getattr(Enhancer, name), getattr(AsyncEnhancer, name)
        assert inspect.signature(blocking) == inspect.signature(awaitable)
        assert "Flow" not in str(inspect.signature(blocking))
        assert blocking.__doc__ == awaitable.__doc__ != ""
        assert asyncio.iscoroutinefunction(awaitable)
    public = {name for name in vars(Enhancer) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncEnhancer) if not name.startswith("_")}


KINDS = st.sampled_from([Overloaded, ServerUnavailable, InvalidPhotograph, ServerError, b"enhanced"])


@settings(deadline=None, max_examples=40)  # pauses between attempts take their time
@given(st.lists(KINDS, max_size=4))
def test_call_returns_the_first_answer_that_is_not_a_broken_connection(answers):
    with FakeTriton(*answers) as fake, Enhancer(fake.url) as enhancer:
        answers = answers[:3] if answers[:3] == [ServerUnavailable] * 3 else answers
        last = ServerUnavailable if len(answers) == 3 and set(answers) == {ServerUnavailable} else PHOTO
        decisive = next((answer for answer in answers if answer is not ServerUnavailable), last)
        try:
            outcome = enhancer.enhance(PHOTO)
        except EnhanceError as error:
            outcome = type(error)
        assert outcome == decisive
        expected_requests = (
            3
            if decisive is ServerUnavailable
            else next((n for n, answer in enumerate(answers) if answer is not ServerUnavailable), len(answers)) + 1
        )
        assert len(fake.requests) == expected_requests
