// The Python module of the CPU kernels. A form is a recurrence along time with its inputs and outputs, see kernels/scan_forms.py. The
// module has four functions:
//
//   forms()        the names of the forms
//   run()          computes a form; the caller has checked dtypes, shapes and devices
//   call()         checks the inputs and computes a form, or returns None if the inputs do not qualify
//   use_threads()  gives the module torch's pool of threads
//
// The module includes no torch headers, so it builds in seconds and works with every version of torch.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <new>

#include "scan.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

// MODULE is the name of the module. pyproject.toml builds this source once per instruction set, each time with another name.
#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define INIT_(name) PyInit_##name
#define INIT(name) INIT_(name)

namespace {

using Scan = void (*)(void* const*, Dim*, int, const Dim&, Stored);

// A form in the table: the numbers of its operands, and its scans in float32 (`single`) and float64 (`wide`).
struct Entry {
  const char* name;  // without the mask
  bool masked;
  int coefficients, values, flags, operands;
  Scan single, wide;
};

template <class Form>
constexpr Entry kEntry = {Form::kName, is_masked<Form>, Form::kCoefficients, Form::kValues, Form::kFlags, Cursor<float, Form>::kOperands,
                          scan<Form, float>, scan<Form, double>};

// The table of all forms, in the order of AllForms.
template <class... Forms>
struct Table {
  static constexpr Entry entries[] = {kEntry<Forms>...};
  explicit Table(List<Forms...>) {}
};
constexpr auto& kForms = decltype(Table(AllForms{}))::entries;

// Raises ValueError with `message`, unless an exception is already set. Returns nullptr.
PyObject* fail(const char* message) {
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, message);
  return nullptr;
}

// Owns a reference to a Python object and releases it at the end of the scope.
struct Reference {
  PyObject* object;
  explicit Reference(PyObject* object) : object(object) {}
  Reference(const Reference&) = delete;
  ~Reference() { Py_XDECREF(object); }
};

// forms() -> a list of the names. The index of a name is the number of the form in run() and call().
PyObject* forms(PyObject*, PyObject*) {
  const Reference names(PyList_New(0));
  for (const Entry& form : kForms) {
    const Reference name(names.object ? PyUnicode_FromFormat("%s%s", form.name, form.masked ? "_masked" : "") : nullptr);
    if (name.object == nullptr || PyList_Append(names.object, name.object) < 0) return nullptr;
  }
  Py_INCREF(names.object);
  return names.object;
}

// Copies `count` integers from a tuple. Returns false if one of them is not an integer.
bool read(PyObject* tuple, int64_t* values, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
  return !PyErr_Occurred();
}

// Computes a form. Returns false if there is not enough memory for copies of operands.
bool compute(Scan scan, void* const* data, Dim* batch, int batch_dims, const Dim& time, Stored stored) {
  try {
    scan(data, batch, batch_dims, time, stored);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// run(form, type, dim, tensor, ...) -> None. Computes a form and writes the outputs. `type` is the dtype of values and outputs: 0 float32,
// 1 float64, 2 float16, 3 bfloat16; for the last two, the computation is in float32. The tensors are the inputs and outputs in the order of
// the form, all of one shape or zero-dimensional. A zero-dimensional tensor counts as expanded: it has stride 0 in every
// dimension. dim must not be negative.
PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr Py_ssize_t kFirstOperand = 3;
  static PyObject* const kDataPtr = PyUnicode_InternFromString("data_ptr");
  static PyObject* const kStride = PyUnicode_InternFromString("stride");
  const long number = nargs > kFirstOperand ? PyLong_AsLong(args[0]) : -1;
  if (number < 0 || number >= long(sizeof kForms / sizeof *kForms)) return fail("run: bad form");
  const Entry& form = kForms[number];
  if (nargs != kFirstOperand + form.operands) return fail("run: bad number of operands");
  const Py_ssize_t dim = PyLong_AsSsize_t(args[2]);
  int64_t sizes[kMaxDims], strides[kMaxDims];
  const Reference shape(PyObject_GetAttrString(args[nargs - 1], "shape"));
  if (shape.object == nullptr) return nullptr;
  const Py_ssize_t dims = PyTuple_Size(shape.object);
  if (dims < 1 || dims > kMaxDims || dim < 0 || dim >= dims) return fail("run: bad shape or dim");
  if (!read(shape.object, sizes, dims)) return nullptr;
  Dim time{}, batch[kMaxDims];
  bool empty = false;
  for (Py_ssize_t d = 0, b = 0; d < dims; ++d) {
    (d == dim ? time : batch[b++]).size = sizes[d];
    empty = empty || sizes[d] == 0;
  }
  void* data[kMaxOperands];
  for (int k = 0; k < form.operands; ++k) {
    const Reference pointer(PyObject_CallMethodObjArgs(args[kFirstOperand + k], kDataPtr, nullptr));
    if (pointer.object == nullptr) return nullptr;
    const Reference stride(PyObject_CallMethodObjArgs(args[kFirstOperand + k], kStride, nullptr));
    if (stride.object == nullptr) return nullptr;
    data[k] = PyLong_AsVoidPtr(pointer.object);
    if (data[k] == nullptr && !empty) return fail("run: a tensor without memory");
    std::fill(strides, strides + dims, 0);
    const Py_ssize_t given = PyTuple_Size(stride.object);
    if (given != dims && given != 0) return fail("run: bad number of dimensions");
    if (!read(stride.object, strides, given)) return nullptr;
    for (Py_ssize_t d = 0, b = 0; d < dims; ++d) (d == dim ? time : batch[b++]).stride[k] = strides[d];
  }
  const long type = PyLong_AsLong(args[1]);
  if (type < 0 || type > 3) return fail("run: bad dtype");
  const Stored stored = type == 2 ? Stored::kFloat16 : type == 3 ? Stored::kBfloat16 : Stored::kReal;
  bool enough_memory = true;
  if (!empty) {
    Py_BEGIN_ALLOW_THREADS;
    enough_memory = compute(type == 1 ? form.wide : form.single, data, batch, int(dims) - 1, time, stored);
    Py_END_ALLOW_THREADS;
  }
  if (!enough_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// The part of DLPack's C interface that call() uses. Unlike torch's own C interface, DLPack's is stable between versions, and it reads
// the pointer, shape and strides of a tensor in nanoseconds.
struct DLTensor {
  void* data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DLPack {
  static constexpr uint32_t kMajor = 1;
  enum { kCpu = 1, kInt = 0, kFloat = 2, kBool = 6 };
  uint32_t major, minor;
  void *previous, *allocate, *from_object, *to_object;
  int (*read)(void* object, DLTensor* tensor);
};

// The objects of torch that call() uses. These objects are never released, because no interpreter exists when static objects are destroyed.
struct Torch {
  PyObject* const module = PyImport_ImportModule("torch");
  PyObject* const tensor = get(module, "Tensor");
  PyObject* const float32 = get(module, "float32");
  PyObject* const float64 = get(module, "float64");
  PyObject* const empty_like = get(module, "empty_like");
  PyObject* const is_grad_enabled = get(module, "is_grad_enabled");
  PyObject* const is_neg = get(tensor, "is_neg");
  PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* const clone = PyUnicode_InternFromString("clone");
  const DLPack* const dlpack = interface(get(tensor, "__dlpack_c_exchange_api__"));

  // Returns an attribute, or nullptr if the object is nullptr or has no such attribute.
  static PyObject* get(PyObject* object, const char* name) { return object ? PyObject_GetAttrString(object, name) : nullptr; }

  // Returns the DLPack interface of this version of torch, or nullptr if torch has no such interface or another major version of it.
  static const DLPack* interface(PyObject* capsule) {
    auto found = capsule ? static_cast<const DLPack*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api")) : nullptr;
    PyErr_Clear();  // older versions of torch have no such capsule
    return found != nullptr && found->major == DLPack::kMajor ? found : nullptr;
  }
};
const Torch& torch() {
  static const Torch& once = *new Torch;
  return once;
}

// The operands of call(). The member functions return false if an operand does not qualify. They give no reason: the Python code that runs
// instead raises the error.
struct Operands {
  const Entry& form;
  const int first_flag, num_inputs;
  PyObject* inputs[kMaxOperands];
  void* data[kMaxOperands];
  Dim time, batch[kMaxDims];
  DLTensor like;  // the last value; values and flags must have its shape, values and coefficient tensors its dtype
  Py_ssize_t dim;
  int64_t numel;
  double numbers[kMaxOperands];
  PyObject* layout = nullptr;  // a value with the strides of the first flag, or nullptr
  PyObject* own_flag = nullptr;  // the copy of the first flag that end_sequences() makes

  explicit Operands(const Entry& form)
      : form(form), first_flag(form.coefficients + form.values), num_inputs(first_flag + form.flags) {}
  Operands(const Operands&) = delete;
  ~Operands() { Py_XDECREF(own_flag); }

  // Checks all inputs and reads their pointers and strides. Returns false also if there are no elements or more than `max_elements`.
  bool take(PyObject* const* given, PyObject* time_dim, int64_t max_elements) {
    std::copy(given, given + num_inputs, inputs);
    if (torch().dlpack == nullptr || !PyLong_CheckExact(time_dim) || !read(inputs[first_flag - 1], &like)) return false;
    if (like.code != DLPack::kFloat || (like.bits != 32 && like.bits != 64) || like.ndim > kMaxDims) return false;
    dim = PyLong_AsSsize_t(time_dim);
    dim += dim < 0 ? like.ndim : 0;
    if (dim < 0 || dim >= like.ndim) return false;
    numel = 1;
    for (int d = 0, b = 0; d < like.ndim; ++d) numel *= (d == dim ? time : batch[b++]).size = like.shape[d];
    if (numel == 0 || numel > max_elements) return false;
    DLTensor flags = like;
    if (form.flags > 0 && !read(inputs[first_flag], &flags)) return false;
    for (int k = 0; k < num_inputs; ++k)
      if (!(k < form.coefficients && number(k)) && !input(k, flags)) return false;
    return true;
  }

  // Replaces the first flag, which ends the trace, by a copy that is also true at the last step of each packed sequence: before each entry of
  // `cu_seqlens`. Call take() before.
  bool end_sequences(PyObject* cu_seqlens) {
    DLTensor starts, flag;
    if (form.flags == 0 || !read(cu_seqlens, &starts) || starts.code != DLPack::kInt || starts.ndim != 1) return false;
    if ((starts.bits != 32 && starts.bits != 64) || starts.lanes != 1) return false;
    own_flag = PyObject_CallMethodObjArgs(inputs[first_flag], torch().clone, nullptr);
    if (own_flag == nullptr || !read(own_flag, &flag)) return false;
    inputs[first_flag] = own_flag;
    place(first_flag, flag.data, flag.strides);
    for (int64_t i = 0; i < starts.shape[0]; ++i) {
      const int64_t at = i * starts.strides[0];
      const int64_t start = starts.bits == 32 ? static_cast<int32_t*>(starts.data)[at] : static_cast<int64_t*>(starts.data)[at];
      if (start > 0) set(static_cast<uint8_t*>(flag.data) + (std::min(start, time.size) - 1) * time.stride[first_flag], like.ndim - 1);
    }
    return true;
  }

  // Sets the first flag at one time to true, for all indices of the first `dims` batch dimensions.
  void set(uint8_t* flag, int dims) const {
    if (dims == 0) {
      *flag = 1;
      return;
    }
    const Dim& dim = batch[dims - 1];
    for (int64_t i = 0; i < dim.size; ++i) set(flag + i * dim.stride[first_flag], dims - 1);
  }

  // Reads a tensor. Returns false for anything but a CPU tensor with memory, and for an instance of a subclass of Tensor, which may behave
  // differently.
  static bool read(PyObject* object, DLTensor* tensor) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != torch().tensor) return false;
    if (torch().dlpack->read(object, tensor) != 0 || tensor->device_type != DLPack::kCpu) return false;
    return tensor->data != nullptr && tensor->byte_offset == 0;
  }

  // Reads coefficient k if it is a Python number, but not a bool. The number becomes an operand with stride 0.
  bool number(int k) {
    if (!PyFloat_Check(inputs[k]) && !(PyLong_Check(inputs[k]) && !PyBool_Check(inputs[k]))) return false;
    place_number(k, PyFloat_AsDouble(inputs[k]));
    return true;
  }

  // Stores a number in the dtype of the values as coefficient k.
  void place_number(int k, double number) {
    numbers[k] = number;
    if (like.bits == 32) {
      const float single = float(number);
      std::memcpy(&numbers[k], &single, sizeof single);
    }
    place(k, &numbers[k], nullptr);
  }

  // Reads input k if it is a tensor that qualifies. Values and coefficients must not need a gradient.
  bool input(int k, const DLTensor& flags) {
    DLTensor tensor;
    const bool is_flag = k >= first_flag;
    if (!read(inputs[k], &tensor) || tensor.code != (is_flag ? DLPack::kBool : DLPack::kFloat)) return false;
    const bool scalar = k < form.coefficients && tensor.ndim == 0;
    // A zero-dimensional coefficient may have the other dtype, as the float64 buffers of the estimators have.
    const bool converts = scalar && tensor.bits != like.bits && (tensor.bits == 32 || tensor.bits == 64);
    if ((tensor.bits != (is_flag ? 8 : like.bits) && !converts) || tensor.lanes != 1) return false;
    if (!scalar && (tensor.ndim != like.ndim || !std::equal(like.shape, like.shape + like.ndim, tensor.shape))) return false;
    if (!is_flag && !can_be_read_as_stored(inputs[k])) return false;
    if (k >= form.coefficients && !is_flag && std::equal(flags.strides, flags.strides + like.ndim, tensor.strides)) layout = inputs[k];
    if (converts)
      place_number(k, tensor.bits == 32 ? *static_cast<float*>(tensor.data) : *static_cast<double*>(tensor.data));
    else
      place(k, tensor.data, scalar ? nullptr : tensor.strides);
    return true;
  }

  // Returns whether autograd records no gradient of the tensor, and the tensor is not a negated view, whose memory holds the values with
  // the opposite sign.
  static bool can_be_read_as_stored(PyObject* tensor) {
    const Reference wanted(PyObject_GetAttr(tensor, torch().requires_grad));
    const Reference negated(PyObject_CallFunctionObjArgs(torch().is_neg, tensor, nullptr));
    if (wanted.object == Py_False) return negated.object == Py_False;
    const Reference enabled(PyObject_CallFunctionObjArgs(torch().is_grad_enabled, nullptr));
    return enabled.object == Py_False && negated.object == Py_False;
  }

  // Stores the pointer and the strides of operand k. If `strides` is nullptr, all strides are 0.
  void place(int k, void* where, const int64_t* strides) {
    data[k] = where;
    for (int d = 0, b = 0; d < like.ndim; ++d) (d == dim ? time : batch[b++]).stride[k] = strides ? strides[d] : 0;
  }

  // Creates the outputs with the strides of the first flag, as Form.empty_outputs in kernels/scan_forms.py does.
  bool make_outputs(PyObject* tuple) {
    for (int k = num_inputs; k < form.operands; ++k) {
      PyObject* const output = new_output();
      DLTensor tensor;
      if (output == nullptr || PyTuple_SetItem(tuple, k - num_inputs, output) < 0 || !read(output, &tensor)) return false;
      if (tensor.code != like.code || tensor.bits != like.bits || tensor.ndim != like.ndim) return false;
      if (!std::equal(like.shape, like.shape + like.ndim, tensor.shape)) return false;
      place(k, tensor.data, tensor.strides);
    }
    return true;
  }

  // Returns an uninitialised output: like a value with the flags' strides, if there is one, otherwise like the first flag with the values'
  // dtype.
  PyObject* new_output() const {
    if (layout != nullptr) return PyObject_CallFunctionObjArgs(torch().empty_like, layout, nullptr);
    const Reference arguments(PyTuple_Pack(1, inputs[first_flag])), options(PyDict_New());
    if (arguments.object == nullptr || options.object == nullptr) return nullptr;
    if (PyDict_SetItemString(options.object, "dtype", like.bits == 32 ? torch().float32 : torch().float64) < 0) return nullptr;
    return PyObject_Call(torch().empty_like, arguments.object, options.object);
  }

  // Computes the outputs. Releases the GIL meanwhile if there are many elements. Returns false if there is not enough memory.
  bool scan() {
    constexpr int64_t kMaxWithGil = 16384;  // so many elements take less time than to release the GIL and acquire it again
    PyThreadState* const state = numel > kMaxWithGil ? PyEval_SaveThread() : nullptr;
    const bool computed = compute(like.bits == 32 ? form.single : form.wide, data, batch, like.ndim - 1, time, Stored::kReal);
    if (state != nullptr) PyEval_RestoreThread(state);
    return computed;
  }
};

// call(form, max_elements, dim, cu_seqlens, coefficients..., values..., flags...) -> a tuple of the outputs, or None if the inputs do not
// qualify. All tensors must be plain CPU tensors, and no value or coefficient may need a gradient. Values: one shape, float32 or float64.
// Coefficients: numbers, zero-dimensional tensors, float32 or float64, or tensors of the values' dtype and shape. Flags: their shape,
// bool. dim may be negative. cu_seqlens: None, or one dimension, int32 or int64: a trace also ends before each entry.
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr Py_ssize_t kFirstInput = 4;
  const long number = nargs > kFirstInput ? PyLong_AsLong(args[0]) : -1;
  if (number < 0 || number >= long(sizeof kForms / sizeof *kForms)) return fail("call: bad form");
  const Entry& form = kForms[number];
  Operands operands(form);
  if (nargs != kFirstInput + operands.num_inputs) return fail("call: bad number of operands");
  const Reference outputs(PyTuple_New(form.operands - operands.num_inputs));
  if (outputs.object == nullptr) return nullptr;
  const bool qualify = operands.take(args + kFirstInput, args[2], PyLong_AsLongLong(args[1])) &&
                       (args[3] == Py_None || operands.end_sequences(args[3])) && operands.make_outputs(outputs.object);
  if (!qualify || PyErr_Occurred()) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  if (!operands.scan()) return PyErr_NoMemory();
  Py_INCREF(outputs.object);
  return outputs.object;
}

// use_threads(address) -> None. `address` is that of a ParallelFor, see scan.h, or 0: every scan runs in the thread that calls it. A process
// that this one forks has none of its threads, and the pool may wait for them, so there every scan runs in the calling thread.
PyObject* use_threads(PyObject*, PyObject* address) {
  parallel_for = reinterpret_cast<ParallelFor>(PyLong_AsVoidPtr(address));
  if (PyErr_Occurred()) return nullptr;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { parallel_for = nullptr; });
  if (registered != 0) parallel_for = nullptr;
#endif
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"forms", forms, METH_NOARGS, nullptr},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(run)), METH_FASTCALL, nullptr},
    {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(call)), METH_FASTCALL, nullptr},
    {"use_threads", use_threads, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, TEXT(MODULE), nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC INIT(MODULE)() { return PyModule_Create(&module); }
