"""The courier: order, one end per client, and clients that leave while nothing is sent to them."""

import threading
import time

import numpy as np
import pytest

from vllm_chat.courier import Courier, Parcel
from vllm_chat.errors import EngineFailed

WAIT_S = 10


class Client:
    """A reply that records what arrives."""

    def __init__(self, broken=False):
        self.got = []
        self.left = False
        self.broken = broken
        self.gone = threading.Event()
        self.parcel = Parcel(self, self.gone.set)

    def send(self, outputs, final):
        if self.broken:
            raise OSError("the pipe is closed")
        self.got.append((outputs["text"].item(), final))

    def fail(self, error):
        self.got.append((str(error), True))

    def is_cancelled(self):
        return self.left


@pytest.fixture
def lines():
    return []


@pytest.fixture
def courier(lines):
    courier = Courier(lines.append)
    yield courier
    courier.close()


def word(text):
    return {"text": np.array([text])}


def test_responses_arrive_in_order_and_nothing_follows_the_last(courier):
    clients = [Client() for _ in range(3)]
    for client in clients:
        courier.open(client.parcel)
    for number in range(50):
        for client in clients:
            courier.send(client.parcel, word(str(number)), final=number == 49)
            courier.fail(client.parcel, EngineFailed("late")) if number == 49 else None
    courier.close()
    assert all(client.got == [(str(n), n == 49) for n in range(50)] for client in clients)


def test_a_client_that_leaves_before_its_first_response_is_noticed(courier):
    client = Client()
    courier.open(client.parcel)
    assert not client.gone.wait(0.1)
    client.left = True
    assert client.gone.wait(WAIT_S)
    courier.fail(client.parcel, EngineFailed("cancelled"))
    courier.close()
    assert client.got == [("cancelled", True)]


def test_the_way_back_is_let_go_after_the_last_response(courier):
    client, other = Client(), Client()
    courier.open(client.parcel)
    courier.open(other.parcel)
    courier.send(client.parcel, word("bye"), final=True)
    courier.close()
    assert client.parcel.reply is None
    assert other.parcel.reply is other


def test_a_receipt_comes_after_its_response_and_even_if_that_could_not_be_delivered(lines):
    well, broken = Client(), Client(broken=True)
    seen = []
    courier = Courier(lines.append, lambda receipts: seen.extend((receipt, list(well.got)) for receipt in receipts))
    for client in (well, broken):
        courier.open(client.parcel)
    courier.send(well.parcel, word("one"), False, receipt=1)
    courier.send(broken.parcel, word("lost"), False, receipt=2)
    courier.send(well.parcel, word("two"), True)
    courier.send(well.parcel, word("too late"), False, receipt=3)
    courier.close()
    assert [receipt for receipt, _ in seen] == [1, 2, 3]
    assert all(("one", False) in delivered for _, delivered in seen)
    assert well.got == [("one", False), ("two", True)]


def test_a_client_that_leaves_is_noticed_though_the_courier_is_never_idle(courier):
    leaving, busy = Client(), Client()
    for client in (leaving, busy):
        courier.open(client.parcel)
    for _ in range(100):
        courier.send(busy.parcel, word("more"), final=False)
    leaving.left = True
    deadline = time.monotonic() + WAIT_S
    while not leaving.gone.is_set() and time.monotonic() < deadline:
        for _ in range(50):
            courier.send(busy.parcel, word("more"), final=False)
        time.sleep(0)
    assert leaving.gone.is_set()


def test_a_response_that_cannot_be_delivered_stops_its_own_request_only(courier, lines):
    broken, well = Client(broken=True), Client()
    for client in (broken, well):
        courier.open(client.parcel)
        courier.send(client.parcel, word("hello"), final=False)
    assert broken.gone.wait(WAIT_S)
    courier.send(well.parcel, word("end"), final=True)
    courier.close()
    assert well.got == [("hello", False), ("end", True)]
    assert any("the pipe is closed" in line for line in lines)
