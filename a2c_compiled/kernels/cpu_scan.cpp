// The linear recurrence on the CPU: y[t] = x[t] + decay[t] * y[t+1], or y[t-1] forward; a zero decay cuts.
//
// Plain C++ behind one Python function: no torch headers, so that it builds in a second and works with every version of torch.
// The caller has checked everything: dtypes, shapes, devices.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int kMaxDims = 16;
constexpr int kOperands = 3;  // x, decay, y
constexpr int64_t kLanes = 16;  // sequences side by side in a tile: a few vector registers of any width
constexpr int64_t kTile = 64;   // steps of a tile: three tiles of doubles fit the first-level cache
constexpr int64_t kFew = 4;     // fewer sequences than this are scanned one by one
constexpr int64_t kWide = 1024;  // sequences side by side where they lie side by side in memory

struct Dim {
  int64_t size;
  int64_t stride[kOperands];  // in elements
};

template <class T>
inline T step(T x, T decay, T previous) {
  // A select, not a product: NaN times zero is NaN.
  return x + (decay == T(0) ? T(0) : decay * previous);
}

// Sequences that lie side by side: one pass over the steps, every step a vector operation over the sequences.
template <class T>
void scan_side_by_side(const T* x, const T* decay, T* y, const Dim& time, int64_t sequences, bool reverse) {
  const int64_t first = reverse ? time.size - 1 : 0, toward = reverse ? -1 : 1;
  for (int64_t start = 0; start < sequences; start += kWide) {
    const int64_t count = std::min(kWide, sequences - start);
    const T* previous = nullptr;
    for (int64_t i = 0, t = first; i < time.size; ++i, t += toward) {
      const T* __restrict x_t = x + start + t * time.stride[0];
      const T* __restrict decay_t = decay + start + t * time.stride[1];
      T* __restrict y_t = y + start + t * time.stride[2];
      if (previous == nullptr) {
        std::copy(x_t, x_t + count, y_t);
      } else {
        const T* __restrict y_previous = previous;
        for (int64_t n = 0; n < count; ++n) y_t[n] = step(x_t[n], decay_t[n], y_previous[n]);
      }
      previous = y_t;
    }
  }
}

// One sequence: nothing to do side by side, each step waits for the one before.
template <class T>
void scan_one(const T* x, const T* decay, T* y, const Dim& time, bool reverse) {
  const int64_t toward = reverse ? -1 : 1;
  T carry(0);
  for (int64_t i = 0, t = reverse ? time.size - 1 : 0; i < time.size; ++i, t += toward) {
    carry = step(x[t * time.stride[0]], decay[t * time.stride[1]], carry);
    y[t * time.stride[2]] = carry;
  }
}

// Sequences apart, a step next to a step or not: tiles are turned, so that here too a step is a vector operation.
template <class T>
void scan_in_tiles(const T* x, const T* decay, T* y, const Dim& time, const Dim& lane, bool reverse) {
  alignas(64) T x_tile[kTile][kLanes], decay_tile[kTile][kLanes], carry[kLanes];
  for (int64_t start = 0; start < lane.size; start += kLanes) {
    const int64_t lanes = std::min(kLanes, lane.size - start);
    const T* x_rows = x + start * lane.stride[0];
    const T* decay_rows = decay + start * lane.stride[1];
    T* y_rows = y + start * lane.stride[2];
    std::fill(carry, carry + kLanes, T(0));
    if (lanes < kLanes) {  // what is computed in the empty lanes is thrown away, but is not to be garbage
      std::fill(&x_tile[0][0], &x_tile[0][0] + kTile * kLanes, T(0));
      std::fill(&decay_tile[0][0], &decay_tile[0][0] + kTile * kLanes, T(0));
    }
    for (int64_t done = 0; done < time.size; done += kTile) {
      const int64_t count = std::min(kTile, time.size - done);
      const int64_t begin = reverse ? time.size - done - count : done;
      for (int64_t n = 0; n < lanes; ++n) {
        const T* x_row = x_rows + n * lane.stride[0] + begin * time.stride[0];
        const T* decay_row = decay_rows + n * lane.stride[1] + begin * time.stride[1];
        for (int64_t t = 0; t < count; ++t) {
          x_tile[t][n] = x_row[t * time.stride[0]];
          decay_tile[t][n] = decay_row[t * time.stride[1]];
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t t = reverse ? count - 1 - i : i;
        for (int64_t n = 0; n < kLanes; ++n) {
          carry[n] = step(x_tile[t][n], decay_tile[t][n], carry[n]);
          x_tile[t][n] = carry[n];
        }
      }
      for (int64_t n = 0; n < lanes; ++n) {
        T* y_row = y_rows + n * lane.stride[2] + begin * time.stride[2];
        for (int64_t t = 0; t < count; ++t) y_row[t * time.stride[2]] = x_tile[t][n];
      }
    }
  }
}

// Batch dimensions without those of size 1, and with those merged that are one in memory for all operands.
int merge(Dim* dims, int count) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (dims[i].size == 1) continue;
    if (kept > 0) {
      Dim& outer = dims[kept - 1];
      bool one = true;
      for (int k = 0; k < kOperands; ++k) one = one && outer.stride[k] == dims[i].stride[k] * dims[i].size;
      if (one) {
        outer.size *= dims[i].size;
        std::copy(dims[i].stride, dims[i].stride + kOperands, outer.stride);
        continue;
      }
    }
    dims[kept++] = dims[i];
  }
  return kept;
}

template <class T>
void scan(void* const* data, Dim* batch, int batch_dims, const Dim& time, bool reverse) {
  batch_dims = merge(batch, batch_dims);
  // The lanes: the dimension whose neighbours lie closest in the output.
  Dim lane{1, {0, 0, 0}};
  if (batch_dims > 0) {
    Dim* closest = std::min_element(batch, batch + batch_dims, [](const Dim& a, const Dim& b) { return a.stride[2] < b.stride[2]; });
    lane = *closest;
    std::copy(closest + 1, batch + batch_dims, closest);
    --batch_dims;
  }
  const bool side_by_side = lane.size >= kLanes / 2 && lane.stride[0] == 1 && lane.stride[1] == 1 && lane.stride[2] == 1;
  int64_t index[kMaxDims] = {};
  for (;;) {
    int64_t offset[kOperands] = {};
    for (int d = 0; d < batch_dims; ++d)
      for (int k = 0; k < kOperands; ++k) offset[k] += index[d] * batch[d].stride[k];
    const T* x = static_cast<const T*>(data[0]) + offset[0];
    const T* decay = static_cast<const T*>(data[1]) + offset[1];
    T* y = static_cast<T*>(data[2]) + offset[2];
    if (side_by_side) {
      scan_side_by_side(x, decay, y, time, lane.size, reverse);
    } else if (lane.size >= kFew) {
      scan_in_tiles(x, decay, y, time, lane, reverse);
    } else {
      for (int64_t n = 0; n < lane.size; ++n)
        scan_one(x + n * lane.stride[0], decay + n * lane.stride[1], y + n * lane.stride[2], time, reverse);
    }
    int d = batch_dims - 1;
    while (d >= 0 && ++index[d] == batch[d].size) index[d--] = 0;
    if (d < 0) return;
  }
}

bool read_tuple(PyObject* tuple, int64_t* values, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    values[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
    if (values[i] == -1 && PyErr_Occurred()) return false;
  }
  return true;
}

// linear_scan(shape, dim, reverse, is_double, x, x_stride, decay, decay_stride, y, y_stride)
PyObject* linear_scan(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 10) {
    PyErr_SetString(PyExc_TypeError, "linear_scan: expected 10 arguments");
    return nullptr;
  }
  const Py_ssize_t dims = PyTuple_Size(args[0]);
  int64_t shape[kMaxDims], strides[kOperands][kMaxDims], dim = PyLong_AsLongLong(args[1]);
  if (dims < 1 || dims > kMaxDims || dim < 0 || dim >= dims || !read_tuple(args[0], shape, dims)) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "linear_scan: bad shape or dim");
    return nullptr;
  }
  void* data[kOperands];
  for (int k = 0; k < kOperands; ++k) {
    data[k] = PyLong_AsVoidPtr(args[4 + 2 * k]);
    if (!read_tuple(args[5 + 2 * k], strides[k], dims)) return nullptr;
  }
  if (PyErr_Occurred()) return nullptr;
  const bool reverse = PyObject_IsTrue(args[2]), is_double = PyObject_IsTrue(args[3]);
  Dim time{}, batch[kMaxDims];
  int batch_dims = 0;
  bool empty = false;
  for (int d = 0; d < dims; ++d) {
    Dim& target = d == dim ? time : batch[batch_dims++];
    target.size = shape[d];
    for (int k = 0; k < kOperands; ++k) target.stride[k] = strides[k][d];
    empty = empty || shape[d] == 0;
  }
  if (!empty) {
    Py_BEGIN_ALLOW_THREADS;
    if (is_double)
      scan<double>(data, batch, batch_dims, time, reverse);
    else
      scan<float>(data, batch, batch_dims, time, reverse);
    Py_END_ALLOW_THREADS;
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"linear_scan", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(linear_scan)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
