// A CUDA backend whose device memory is host memory, for a CPU build of PyTorch, which ships with that backend empty.
//
// Its tensors say device cuda:0. An operation on them runs the CPU's kernel on the same bytes, through a second tensor
// that names the same memory as the host's. An operation that meets both devices is refused where CUDA refuses it.
// Order of reading: memory and device, names of one memory, the operation, attention, registration.
#include <ATen/ATen.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <unordered_set>

namespace {
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::IValue;

const Device HOST(at::kCPU);
const Device TWIN(at::kCUDA, 0);  // the only one

// ---- memory and device
struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {place, place, &c10::free_cpu, TWIN};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} device_memory;

// Page-locked memory is ordinary memory whose address is remembered.
std::mutex pinned_lock;
std::unordered_set<const void*> pinned;

void unpin(void* place) {
  std::lock_guard<std::mutex> locked(pinned_lock);
  pinned.erase(place);
  c10::free_cpu(place);
}

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = c10::alloc_cpu(std::max<size_t>(bytes, 1));
    std::lock_guard<std::mutex> locked(pinned_lock);
    pinned.insert(place);
    return {place, place, &unpin, HOST};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
} pinned_memory;

// One device with one stream, on which everything is done as soon as it is asked for.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<at::kCUDA> {
  Device exchangeDevice(Device) const override { return TWIN; }
  Device getDevice() const override { return TWIN; }
  c10::Stream getStream(Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, TWIN); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return TWIN; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* place) const override {
    std::lock_guard<std::mutex> locked(pinned_lock);
    return pinned.count(place) > 0;
  }
};

// ---- names of one memory
void release(void* kept) { delete static_cast<c10::Storage*>(kept); }

// A pointer to a storage's bytes under a device's name; it keeps the storage alive.
c10::DataPtr named(const c10::Storage& storage, Device device) {
  return {storage.mutable_data(), new c10::Storage(storage), &release, device};
}

Tensor renamed(const Tensor& tensor, Device device) {
  c10::Allocator* allocator = &device_memory;
  if (device.is_cpu()) allocator = c10::GetAllocator(at::kCPU);
  const auto& storage = tensor.storage();
  c10::Storage other(c10::Storage::use_byte_size_t(), storage.nbytes(), named(storage, device), allocator, true);
  const auto key = device.is_cpu() ? DispatchKey::CPU : DispatchKey::CUDA;
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(other), c10::DispatchKeySet(key), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

Tensor on_host(const Tensor& tensor) { return tensor.defined() && tensor.is_cuda() ? renamed(tensor, HOST) : tensor; }

Tensor view_of(const Tensor& base, const Tensor& like) {
  // The base's keys: a view of a parameter that is taken in inference mode is no inference tensor.
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

// What an operation changed of the host's name (out= resizes) becomes true of ours.
void take_over(const Tensor& ours, const Tensor& hosts) {
  const auto &from = hosts.storage(), &to = ours.storage();
  if (to.data() != from.data() || to.nbytes() != from.nbytes()) {
    to.unsafeGetStorageImpl()->set_data_ptr_noswap(named(from, TWIN));
    to.unsafeGetStorageImpl()->set_nbytes(from.nbytes());
  }
  if (ours.sizes() != hosts.sizes() || ours.strides() != hosts.strides())
    ours.unsafeGetTensorImpl()->set_sizes_and_strides(hosts.sizes(), hosts.strides(), hosts.storage_offset());
}

// ---- the operation
class Call {
 public:
  explicit Call(const c10::OperatorHandle& op) : op_(op) {}

  IValue to_host(const IValue& value, const c10::Argument& argument) {
    if (value.isDevice() && value.toDevice().is_cuda()) {
      TORCH_CHECK(value.toDevice().index() <= 0, "CUDA error: invalid device ordinal (the device twin has one device)");
      return HOST;
    }
    return each(value, [&](const Tensor& tensor) { return hosts_name(tensor, argument.name()); });
  }

  IValue to_twin(const IValue& value) {
    return each(value, [&](const Tensor& tensor) { return our_name(tensor); });
  }

  void take_over_all() const {
    for (const auto& [ours, hosts] : known_) take_over(ours, hosts);
  }

 private:
  template <typename Function>
  static IValue each(const IValue& value, Function&& function) {
    if (value.isTensor()) return function(value.toTensor());
    if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(function(tensor));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional<Tensor>(function(*tensor)) : std::nullopt);
      return list;
    }
    return value;
  }

  Tensor hosts_name(const Tensor& tensor, const std::string& argument) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_cuda()) {
      TORCH_CHECK(
          !tensor.is_cpu() || may_stay(tensor, argument),
          "Expected all tensors to be on the same device, but got ", argument,
          " is on cpu, different from other tensors on cuda:0 (when checking argument in method ", op_.schema().name(), ")");
      return tensor;
    }
    known_.emplace_back(tensor, on_host(tensor));
    return known_.back().second;
  }

  // CUDA's operations take from the host: numbers where they work element by element, and the indices of indexing.
  bool may_stay(const Tensor& tensor, const std::string& argument) const {
    if (argument == "indices") return !known_.empty();
    const bool number = op_.hasTag(at::Tag::pointwise) || argument == "value" || argument == "values";
    return tensor.unsafeGetTensorImpl()->is_wrapped_number() || (tensor.dim() == 0 && number);
  }

  Tensor our_name(const Tensor& tensor) const {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (const auto& [ours, hosts] : known_)
      if (hosts.is_same(tensor)) return ours;
    for (const auto& [ours, hosts] : known_)
      if (hosts.storage().is_alias_of(tensor.storage())) return view_of(ours, tensor);
    return renamed(tensor, TWIN);
  }

  const c10::OperatorHandle& op_;
  std::vector<std::pair<Tensor, Tensor>> known_;  // our name and the host's
};

void on_cpu_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op);
  const auto& arguments = op.schema().arguments();
  auto* first = &*(stack->end() - arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) first[i] = call.to_host(first[i], arguments[i]);
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  call.take_over_all();
  for (auto value = stack->end() - op.schema().returns().size(); value != stack->end(); ++value)
    *value = call.to_twin(*value);
}

Tensor& copy(Tensor& self, const Tensor& source, bool) {
  on_host(self).copy_(on_host(source));
  return self;
}

// ---- attention
enum Kernel { MATH, FLASH, EFFICIENT };
std::array<std::atomic<int64_t>, 3> taken{};

// Which kernel CUDA takes for float32 and 16-bit numbers, without dropout and cuDNN: PyTorch's rules in our words.
Kernel choose(const Tensor& query, const Tensor& key, const Tensor& value, bool masked) {
  const bool half = query.element_size() == 2, grouped = query.size(1) != key.size(1);
  const auto size = query.size(-1);
  Kernel kernel = MATH;
  if (half && !masked && size <= 256 && size == value.size(-1)) kernel = FLASH;
  else if (!grouped && query.element_size() <= 4 && size % (half ? 8 : 4) == 0) kernel = EFFICIENT;
  ++taken[kernel];
  return kernel;
}

Tensor fused(const Tensor& query, Tensor key, Tensor value, const std::optional<Tensor>& bias, double dropout, bool causal,
             std::optional<double> scale) {
  const auto repeats = query.size(1) / key.size(1);
  if (repeats > 1) {
    key = key.repeat_interleave(repeats, 1);
    value = value.repeat_interleave(repeats, 1);
  }
  if (value.size(-1) != query.size(-1))  // which CUDA's efficient kernel takes and the CPU's does not
    return std::get<0>(
        at::_scaled_dot_product_attention_math(query, key, value, bias, dropout, causal, std::nullopt, scale, false));
  return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, causal, bias, scale));
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                 double dropout, bool causal, std::optional<double> scale, bool grouped) {
  TORCH_CHECK(key.device() == query.device() && value.device() == query.device(),
              "Expected query, key, and value to have the same device type, but got query.device: ", query.device(),
              " key.device: ", key.device(), " and value.device: ", value.device(), " instead.");
  TORCH_CHECK(key.dtype() == query.dtype() && value.dtype() == query.dtype(),
              "Expected query, key, and value to have the same dtype, but got query.dtype: ", query.dtype(),
              " key.dtype: ", key.dtype(), " and value.dtype: ", value.dtype(), " instead.");
  const bool masked = mask && mask->defined();
  TORCH_CHECK(!masked || mask->device() == query.device(), "Expected attn_mask to be on the same device as query");
  if (choose(query, key, value, masked) == MATH)
    return std::get<0>(
        at::_scaled_dot_product_attention_math(query, key, value, mask, dropout, causal, std::nullopt, scale, grouped));
  auto bias = mask;
  if (masked && mask->scalar_type() == at::kBool)  // CUDA converts it as well, in every call
    bias = at::where(*mask, at::scalar_tensor(0.0, query.options()), at::scalar_tensor(-INFINITY, query.options()));
  return fused(query, key, value, bias, dropout, causal, scale);
}

// torch.nn.attention.bias.causal_lower_right: CUDA's kernels know it without a mask, the CPU's kernel needs one.
Tensor lower_right(const Tensor& query, const Tensor& key, const Tensor& value, std::optional<double> scale) {
  choose(query, key, value, false);
  const auto rows = query.size(-2), reach = key.size(-2);
  auto seen = at::ones({rows, reach}, at::kFloat).tril(reach - rows).log().to(query.scalar_type());
  return fused(query, key, value, renamed(seen, TWIN), 0.0, false, scale);
}

}  // namespace

// ---- registration
namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, ::Guard);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu_kernel>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", copy);
  library.impl("scaled_dot_product_attention", attention);
  // PyTorch has one function for both devices here.
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("set_.source_Storage", static_cast<Tensor& (*)(Tensor&, at::Storage)>(at::native::set_));
  library.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
}

TORCH_LIBRARY_IMPL(aten, AutogradCUDA, library) { library.impl("scaled_dot_product_attention", attention); }

TORCH_LIBRARY(device_twin, library) {
  library.def("lower_right(Tensor query, Tensor key, Tensor value, float? scale) -> Tensor", lower_right);
}

extern "C" void device_twin_start() {
  c10::SetAllocator(at::kCUDA, &device_memory, 10);
  // PyTorch makes its hooks while it is imported, too early to register others: that object, which holds no data, is
  // given the methods of ours.
  static Hooks ours;
  std::memcpy(const_cast<void*>(static_cast<const void*>(&at::detail::getCUDAHooks())), &ours, sizeof(void*));
}

extern "C" int64_t device_twin_attention_calls(int64_t kernel) { return taken[kernel]; }
