// A stand-in accelerator: torch's PrivateUse1 device over host memory. Mixing it with CPU tensors fails as on a GPU.
#include <atomic>
#include <torch/extension.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/CPUGeneratorImpl.h>

namespace {
constexpr int kDevices = 2;
thread_local c10::DeviceIndex current = 0;
thread_local c10::StreamId streams[kDevices];
std::atomic<int64_t> made;
std::atomic<int64_t> used[kDevices], peak[kDevices], limit[kDevices], synchronisations;
std::atomic<bool> narrow[kDevices];

struct Held { void* data; size_t bytes; c10::DeviceIndex device; };

// Host memory, counted by device; more than a device's limit raises torch.OutOfMemoryError as a real one does.
struct Allocator final : c10::Allocator {
  static void release(void* context) {
    auto* held = static_cast<Held*>(context);
    used[held->device] -= held->bytes;
    c10::free_cpu(held->data);
    delete held;
  }
  c10::DataPtr allocate(size_t n) override {
    c10::Device device(c10::DeviceType::PrivateUse1, current);
    if (!n) return {nullptr, nullptr, &c10::detail::deleteNothing, device};
    int64_t now = used[current] += n;
    if (limit[current] && now > limit[current]) {
      used[current] -= n;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "standin:", int(current), " out of memory. Tried to allocate ", n, " bytes, ", now - int64_t(n), " of ", int64_t(limit[current]), " in use");
    }
    for (int64_t seen = peak[current]; now > seen && !peak[current].compare_exchange_weak(seen, now);) {}
    auto* held = new Held{c10::alloc_cpu(n), n, current};
    return {held->data, held, &release, device};
  }
  void copy_data(void* d, const void* s, std::size_t n) const override { default_copy_data(d, s, n); }
};
Allocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::PrivateUse1;
  c10::DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device d) const override { auto before = getDevice(); setDevice(d); return before; }
  c10::Device getDevice() const override { return {static_type, current}; }
  void setDevice(c10::Device d) const override { if (d.has_index()) current = d.index(); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { if (d.has_index()) current = d.index(); }
  // All is done when it is asked for, so streams and events have nothing to wait for; a stream has a number of its own.
  static c10::Device place(c10::Device d) { return d.has_index() ? d : c10::Device(static_type, current); }
  c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::UNSAFE, place(d), streams[place(d).index()]); }
  c10::Stream getDefaultStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, place(d)); }
  c10::Stream getNewStream(c10::Device d, int) const override { return c10::Stream(c10::Stream::UNSAFE, place(d), ++made); }
  c10::Stream exchangeStream(c10::Stream s) const override { auto before = getStream(s.device()); streams[s.device_index()] = s.id(); return before; }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override { *event = this_event(); }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  static void* this_event() { static int event; return &event; }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  void init() const override {}
};

// Some accelerators have no float64: Apple's.
void check_type(std::optional<at::ScalarType> dt) {
  TORCH_CHECK_TYPE(!narrow[current] || dt.value_or(at::kFloat) != at::kDouble, "standin:", int(current), " has no float64");
}
at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dt, std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> mf) {
  c10::OptionalDeviceGuard guard(device);
  check_type(dt);
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dt), mf);
}
at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dt, std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  check_type(dt);
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dt));
}
at::Tensor as_cpu(const at::Tensor& t) {
  return t.device().is_cpu() ? t : at::from_blob(t.data_ptr(), t.sizes(), t.strides(), c10::TensorOptions().dtype(t.scalar_type()).device(at::kCPU));
}
at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  if (dst.numel()) as_cpu(dst).copy_(as_cpu(self));
  return dst;
}
at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  dst.resize_(self.sizes());
  return copy_from(self, dst, false);
}
// Every value that is read back makes the host wait for the device.
at::Scalar local_scalar_dense(const at::Tensor& self) { ++synchronisations; return as_cpu(self).item(); }
at::Tensor as_strided(const at::Tensor& s, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> off) {
  return at::native::as_strided_tensorimpl(s, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), off ? std::optional<int64_t>(off->expect_int()) : std::nullopt);
}
at::Tensor view(const at::Tensor& s, c10::SymIntArrayRef size) { return at::native::view(s, C10_AS_INTARRAYREF_SLOW(size)); }
at::Tensor reshape_alias(const at::Tensor& s, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) { return at::native::_reshape_alias(s, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride)); }
at::Tensor unfold(const at::Tensor& s, int64_t d, int64_t size, int64_t step) { return at::native::unfold(s, d, size, step); }
const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> mf) {
  auto* impl = self.unsafeGetTensorImpl();
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  // What an operation writes in place may be a view, whose strides stay.
  if (self.sizes() == sizes) return self;
  impl->set_sizes_contiguous(sizes);
  size_t need = (impl->storage_offset() + impl->numel()) * impl->dtype().itemsize();
  if (impl->storage().nbytes() < need) {
    c10::DeviceGuard guard(self.device());
    auto fresh = allocator.allocate(need);
    if (impl->storage().nbytes()) std::memcpy(fresh.get(), impl->storage().data(), impl->storage().nbytes());
    impl->storage().set_data_ptr_noswap(std::move(fresh));
    impl->storage().set_nbytes(need);
  }
  return self;
}
at::Tensor& set_source(at::Tensor& self, at::Storage src, c10::SymInt off, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(src);
  self.unsafeGetTensorImpl()->set_storage_offset(off.expect_int());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}
at::Tensor& set_storage(at::Tensor& self, at::Storage src) {
  int64_t n = src.nbytes() / self.dtype().itemsize();
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(src);
  self.unsafeGetTensorImpl()->set_storage_offset(0);
  self.unsafeGetTensorImpl()->set_sizes_contiguous({n});
  return self;
}
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& src) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(src.storage());
  self.unsafeGetTensorImpl()->set_storage_offset(src.storage_offset());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(src.sizes(), src.strides());
  return self;
}
std::tuple<at::Tensor, at::Tensor, at::Tensor> no_convolution_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef, c10::SymIntArrayRef, c10::SymIntArrayRef, bool, c10::SymIntArrayRef, c10::SymInt, std::array<bool, 3>) {
  TORCH_CHECK(false, "standin does not train convolutions");
}
// The result of a CPU kernel, on the device of the inputs.
at::Tensor onto(const at::Tensor& like, const at::Tensor& made) { return made.to(like.device()); }
at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  std::optional<at::Tensor> b = bias && bias->defined() ? std::optional<at::Tensor>(as_cpu(*bias)) : std::nullopt;
  return onto(x, at::convolution_symint(as_cpu(x), as_cpu(w), b, stride, padding, dilation, transposed, output_padding, groups));
}
// Accelerators count integers; the CPU's kernel does not.
at::Tensor histc(const at::Tensor& self, int64_t bins, const at::Scalar& least, const at::Scalar& most) {
  return onto(self, as_cpu(self).to(at::kFloat).histc(bins, least, most)).to(self.scalar_type());
}
// Memory is free once no tensor has it: all streams have done what was asked of them.
void record_stream(at::Tensor&, c10::Stream) {}
int64_t fused_sdp_choice(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool) { return 0; }
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }
}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("unfold", &unfold);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_source);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &no_convolution_backward);
  m.impl("histc", &histc);
  m.impl("record_stream", &record_stream);
  m.impl("_fused_sdp_choice", &fused_sdp_choice);
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("set_limit", [](int device, int64_t bytes) { limit[device] = bytes; }, "0 = no limit");
  m.def("set_narrow", [](int device, bool value) { narrow[device] = value; }, "whether it has no float64");
  m.def("free_and_total", [](int device) { int64_t total = limit[device] ? int64_t(limit[device]) : int64_t(1) << 40; return std::make_pair(total - int64_t(used[device]), total); });
  m.def("used", [](int device) { return int64_t(used[device]); });
  m.def("peak", [](int device) { return int64_t(peak[device]); });
  m.def("reset_peak", [](int device) { peak[device] = int64_t(used[device]); });
  m.def("synchronisations", [] { return int64_t(synchronisations); }, "values read back so far");
  m.def("current", [] { return int(current); });
  m.def("set_current", [](int device) { current = device; });
  m.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
}
