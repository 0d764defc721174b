"""What the twin promises of itself: it refuses, counts and keeps what ``__init__.py`` says."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from device_twin.backend import attention_calls
from device_twin.counting import first_difference, watched

CUDA = "cuda"


def ones(*shape: int, **options) -> torch.Tensor:
    return torch.ones(*shape, device=CUDA, **options)


def test_tensors_are_real_and_say_where_they_are():
    values = torch.arange(6, device=CUDA).view(2, 3)
    assert (values.is_cuda, str(values.device)) == (True, "cuda:0")
    assert values.cpu().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (values[:, 1] * 2).tolist() == [2, 8]
    values[0].fill_(7)  # through a view
    assert values.sum().item() == 7 * 3 + 12
    assert values.to(torch.float32).view(torch.int32)[0, 0].item() == 0x40E00000


@pytest.mark.parametrize(
    "operation",
    [
        lambda: ones(3) + torch.ones(3),
        lambda: ones(3).index_select(0, torch.tensor([0])),
        lambda: torch.cat([ones(3), torch.ones(3)]),
        lambda: torch.ones(3)[torch.tensor([0], device=CUDA)],
        lambda: nn.Linear(2, 2)(ones(1, 2)),
        lambda: ones(3).index_put_((torch.tensor([0, 1]),), torch.ones(2)),
    ],
)
def test_two_devices_in_one_operation_are_refused(operation):
    with pytest.raises(RuntimeError, match="same device"):
        operation()


def test_numbers_and_indices_of_the_host_pass_as_they_do_on_cuda():
    values = ones(3) * torch.tensor(2.0) + 1
    assert values.masked_fill(values > 5, torch.tensor(0.0)).tolist() == [3, 3, 3]
    assert values[torch.tensor([0, 2])].tolist() == [3, 3]
    values[torch.tensor([1])] = 8.0
    assert values.tolist() == [3, 8, 3]


def test_what_it_has_not_is_refused():
    with pytest.raises(TypeError, match="to numpy"):
        ones(2).numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.Generator(device=CUDA)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(2, device="cuda:1")


@pytest.mark.parametrize(
    ("operation", "counted"),  # launches, waits, uploads
    [
        (lambda x: x + 1, (1, 0, 0)),
        (lambda x: x.view(2, 2).t()[0].unsqueeze(0).detach(), (0, 0, 0)),
        (lambda x: torch.empty_like(x), (0, 0, 0)),
        (lambda x: x.sum().item(), (1, 1, 0)),
        (lambda x: bool((x > 0).any()), (2, 1, 0)),
        (lambda x: x.tolist(), (0, 1, 0)),
        (lambda x: x.nonzero(), (1, 1, 0)),
        (lambda x: x[x > 0], (2, 1, 0)),
        (lambda x: x.clone().masked_fill_(x > 0, 0.0), (3, 0, 0)),
        (lambda x: torch.tensor([1.0], device=CUDA), (0, 0, 1)),
        (lambda x: torch.ones(2).to(CUDA), (0, 0, 1)),
        (lambda x: x[torch.tensor([0])], (1, 0, 1)),
        (lambda x: x[[0, 1]], (1, 0, 1)),
        (lambda x: torch.empty(4, pin_memory=True).copy_(x, non_blocking=True), (0, 0, 0)),
        (lambda x: torch.empty(4).copy_(x, non_blocking=True), (0, 1, 0)),
        (lambda x: torch.cuda.synchronize(), (0, 1, 0)),
        (lambda x: torch.cuda.Event().synchronize(), (0, 1, 0)),
    ],
)
def test_launches_waits_and_uploads_are_counted(operation, counted):
    values = ones(4)
    with watched() as watch:
        operation(values)
    assert watch.totals() == counted


def test_a_write_under_a_mask_waits_unless_it_is_one_number():
    values = ones(4)
    with watched() as number:
        values[values > 0] = 2.0
    with watched() as several:
        values[values > 0] = ones(4)
    assert (number.waits.total(), several.waits.total()) == (0, 1)


def test_the_backward_pass_is_counted_too():
    weight = ones(2, 2, requires_grad=True)
    with watched() as watch:
        (weight @ weight).sum().backward()
    assert sum(number for (name, _), number in watch.launches.items() if name == "mm") == 3
    assert weight.grad is not None
    assert weight.grad.tolist() == [[4, 4], [4, 4]]


def test_storages_travel_between_devices_in_checkpoints():
    values = torch.arange(4, device=CUDA)
    assert values.untyped_storage().clone().device.type == CUDA
    for saved, where in ((values, None), (values, "cpu"), (values.cpu(), CUDA)):
        file = io.BytesIO()
        torch.save({"whole": saved, "part": saved[2:]}, file)
        file.seek(0)
        loaded = torch.load(file, map_location=where, weights_only=True)
        assert loaded["whole"].device.type == (where or CUDA)
        loaded["part"].fill_(9)  # the two still share memory
        assert loaded["whole"].tolist() == [0, 1, 9, 9]


def test_an_optimiser_step_is_the_cpus():
    torch.manual_seed(0)
    host = nn.Linear(3, 2)
    device = nn.Linear(3, 2)
    device.load_state_dict(host.state_dict())
    device.to(CUDA)
    for model in (host, device):
        where = model.weight.device
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        with torch.autocast(where.type, torch.bfloat16):
            loss = model(torch.ones(4, 3, device=where)).square().mean()
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).device == where
        optimizer.step()
    torch.testing.assert_close(device.weight.cpu(), host.weight, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [3, 5])
def test_lower_right_attention_is_attention_under_that_mask(rows):
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, rows, 8), torch.randn(1, 2, 5, 8)
    expected = scaled_dot_product_attention(
        query, key, key, torch.ones(rows, 5, dtype=torch.bool).tril(5 - rows)
    )
    on_device = query.to(CUDA).requires_grad_()
    with watched():
        found = scaled_dot_product_attention(
            on_device, key.to(CUDA), key.to(CUDA), causal_lower_right(rows, 5)
        )
        found.sum().backward()
    torch.testing.assert_close(found.cpu(), expected)
    assert on_device.grad is not None
    with pytest.raises((ValueError, RuntimeError), match="same dtype"):
        scaled_dot_product_attention(
            on_device, key.to(CUDA), key.to(CUDA).bfloat16(), causal_lower_right(rows, 5)
        )


@pytest.mark.parametrize(
    ("dtype", "masked", "grouped", "kernel"),
    [
        (torch.bfloat16, False, True, "flash"),
        (torch.bfloat16, True, False, "efficient"),
        (torch.bfloat16, True, True, "math"),
        (torch.float32, False, False, "efficient"),
        (torch.float32, False, True, "math"),
    ],
)
def test_attention_takes_the_kernel_that_cuda_would(dtype, masked, grouped, kernel):
    query, key = ones(1, 4, 3, 8, dtype=dtype), ones(1, 2 if grouped else 4, 3, 8, dtype=dtype)
    mask = ones(3, 3, dtype=torch.bool).tril() if masked else None
    before = attention_calls()
    output = scaled_dot_product_attention(query, key, key, mask, enable_gqa=grouped)
    assert {
        name: number - before[name]
        for name, number in attention_calls().items()
        if number != before[name]
    } == {kernel: 1}
    assert output.float().sum().item() == math.prod(query.shape)


def test_steps_on_static_memory_are_one_graph_and_others_are_not():
    memory, index = torch.zeros(4, device=CUDA), torch.zeros(1, dtype=torch.int64, device=CUDA)

    def step(number: int) -> None:
        memory.index_add_(0, index, (memory.sum() + 1).unsqueeze(0))
        index.add_(1)

    def moving(number: int) -> None:
        memory[number : number + 1].add_(1)

    def counting(number: int) -> None:
        memory.add_(number)

    def growing(number: int) -> None:
        torch.zeros(number + 1, device=CUDA).add_(1)

    differences = []
    for function in (step, moving, counting, growing):
        recorded = []
        for number in range(2):
            with watched(record=True) as watch:
                function(number)
            recorded.append(watch)
        differences.append(first_difference(*recorded))
    assert differences[0] is None
    assert all(differences[1:])
