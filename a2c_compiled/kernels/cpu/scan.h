// The scan, shared by all forms. A form is a recurrence along time with its inputs and outputs, see kernels/scan_forms.py.
//
//   reverse form:     y[t] = x[t] + decay[t] * y[t+1],     with y[T] = 0
//   transposed form:  y[t] = x[t] + decay[t-1] * y[t-1],   with y[-1] = 0
//
// Where the decay is 0 the product is left out, so NaN and infinity beyond an episode's end have no effect.
//
// The loop. scan() at the end of this file picks one batch dimension, the lane dimension, and loops over the other batch dimensions. For
// each index of these, one of three loops handles all sequences along the lane dimension:
//
//   scan_side_by_side  Neighbouring sequences are neighbours in memory. The outer loop runs over time, the inner loop over up to kWide
//                      sequences, as vector operations. Carries (the values passed from step to step) stay in an array on the
//                      stack. Coefficients may have one value per step. This loop also handles arbitrary strides, more slowly.
//   scan_rows          Neighbouring steps are neighbours in memory, and coefficients are constant in time. The loop processes kLanes
//                      sequences at once, and kTile steps of each. It computes the prologues of that tile as vector operations
//                      along time, then the recurrences of all lanes side by side, then the epilogues.
//   scan_parts         The memory is as for scan_rows, but there are fewer than kLanes sequences, of at least kMinStepsForParts steps. The
//                      loop uses kLanes parts of one sequence in place of kLanes sequences, and then adds the contribution of the value
//                      that enters each part. If a result is NaN or infinite, the loop recomputes the steps one after the other.
//
// Why: a step depends on the step before it. Independent recurrences, computed together, hide this latency. The prologue computes x and
// decay from the inputs, the epilogue the outputs from y, see forms.h. Prologue and epilogue have no such dependence, so they vectorise
// along time, and a tile keeps x and decay in the first-level cache in between.
//
// Threads: a scan runs in the thread that calls scan(). module.cpp releases the GIL during the scan. Exception: call() keeps it for small scans.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "forms.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__clang__)
#define INDEPENDENT_STEPS _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT_STEPS _Pragma("GCC ivdep")
#else
#define INDEPENDENT_STEPS
#endif

namespace {  // internal linkage: one source file includes this

constexpr int kMaxDims = 16, kMaxOperands = 21;
constexpr int64_t kLanes = 8;      // sequences, or parts of one, whose recurrences run side by side
constexpr int64_t kTile = 128;     // steps of a lane in a tile; a tile fits the first-level cache
constexpr int64_t kWide = 1024;    // largest number of sequences in the inner loop of scan_side_by_side
constexpr int64_t kMinStepsForParts = 64;  // with fewer than kLanes sequences, the smallest number of steps for scan_parts

// A dimension of the data: its size, and its stride in every operand.
struct Dim {
  int64_t size;
  int64_t stride[kMaxOperands];  // in elements
};

// The strides of the operands along the inner loop. If they are known when the code is compiled, the loop vectorises.
enum class Strides {
  kConstant,  // every value, flag and output has stride 1, and every coefficient stride 0
  kPerStep,   // every value, flag and output has stride 1, and every coefficient stride 1, or one value for all data
  kAny
};

// The addresses of all operands, and their strides: `step` along the inner loop, `time` along time.
template <class T, class Form>
struct Cursor {
  static constexpr int kInputs = Form::kCoefficients + Form::kValues + Form::kFlags, kOperands = kInputs + Form::kOutputs;
  static constexpr int kValue = Form::kCoefficients, kFlag = kValue + Form::kValues;

  const T* c[Form::kCoefficients + 1];
  const T* v[Form::kValues];
  const uint8_t* f[Form::kFlags + 1];
  T* out[Form::kOutputs];
  int64_t step[kOperands], time[kOperands];
  Strides strides;

  Cursor(void* const* data, const Dim& inner, const Dim& time_dim) {
    for (int k = 0; k < Form::kCoefficients; ++k) c[k] = static_cast<const T*>(data[k]);
    for (int k = 0; k < Form::kValues; ++k) v[k] = static_cast<const T*>(data[kValue + k]);
    for (int k = 0; k < Form::kFlags; ++k) f[k] = static_cast<const uint8_t*>(data[kFlag + k]);
    for (int k = 0; k < Form::kOutputs; ++k) out[k] = static_cast<T*>(data[kInputs + k]);
    std::copy(inner.stride, inner.stride + kOperands, step);
    std::copy(time_dim.stride, time_dim.stride + kOperands, time);
    bool constant = true, per_step = true, unit = true;
    for (int k = 0; k < kValue; ++k) {
      constant = constant && step[k] == 0;
      per_step = per_step && (step[k] == 1 || (step[k] == 0 && time[k] == 0));
    }
    for (int k = kValue; k < kOperands; ++k) unit = unit && step[k] == 1;
    strides = unit && constant ? Strides::kConstant : unit && per_step ? Strides::kPerStep : Strides::kAny;
  }

  // Moves every operand by `by` entries of a dimension with these strides.
  void advance(const int64_t* stride, int64_t by) {
    for (int k = 0; k < Form::kCoefficients; ++k) c[k] += by * stride[k];
    for (int k = 0; k < Form::kValues; ++k) v[k] += by * stride[kValue + k];
    for (int k = 0; k < Form::kFlags; ++k) f[k] += by * stride[kFlag + k];
    for (int k = 0; k < Form::kOutputs; ++k) out[k] += by * stride[kInputs + k];
  }
};

// One step, the argument of a form's functions. An operand is loaded only when the form reads it.
template <class T, class Form, Strides kStrides>
struct Step {
  using Real = T;
  using Here = Cursor<T, Form>;
  const Here& cursor;
  int64_t i, shift;  // the index in the inner loop, and an offset in time
  bool first, last;

  // f() returns true for the done flag of an excluded step, so a form ignores the coefficients of that step, as at an episode's end.
  INLINE T c(int k) const {
    return cursor.c[k][(kStrides == Strides::kConstant ? 0 : index(k, 0)) + shift * cursor.time[k]];
  }
  INLINE T v(int k) const { return unless(excluded(0), cursor.v[k][index(Here::kValue + k, shift)]); }
  INLINE bool f(int k) const {
    return (cursor.f[k][index(Here::kFlag + k, shift)] != 0) | excluded(0) | ((k == kDone) & excluded(last ? 0 : 1));
  }
  INLINE int64_t index(int operand, int64_t shift) const {
    return i * (kStrides == Strides::kAny ? cursor.step[operand] : 1) + shift * cursor.time[operand];
  }
  // Returns whether the mask excludes the step that follows this one by `later` steps.
  INLINE bool excluded(int64_t later) const {
    if constexpr (is_masked<Form>) return cursor.f[Form::kMask][index(Here::kFlag + Form::kMask, shift + later)] == 0;
    return false;
  }
  // before() at the first step and after() at the last step return the step itself, so that the form reads no memory outside the data.
  INLINE Step before() const { return {cursor, i, first ? 0 : -1, false, first & last}; }
  INLINE Step after() const { return {cursor, i, last ? 0 : 1, false, true}; }

  // Computes the outputs of this step and stores them.
  INLINE void finish(T y, T y_after) const {
    T results[Form::kOutputs];
    Form::epilogue(*this, y, y_after, results);
    for (int k = 0; k < Form::kOutputs; ++k) cursor.out[k][index(Here::kInputs + k, 0)] = unless(excluded(0), results[k]);
  }
};

// Whether the scan sets the decay of the last step to 0. Otherwise an infinite decay times y[T] = 0 would be NaN.
template <class Form>
constexpr bool clears_last_decay = Form::kReverse;
template <>
constexpr bool clears_last_decay<TdLambda> = false;  // its trace is 0 at the last step
template <>
constexpr bool clears_last_decay<Masked<TdLambda>> = false;

// One step of the recurrence: returns y[t] and updates `carry`. In a reverse form carry is y[t+1] before and y[t] after. In a transposed
// form it is decay[t-1] * y[t-1] before and decay[t] * y[t] after.
template <bool kReverse, class T>
INLINE T follow(T x, T decay, T& carry) {
  if (kReverse) return carry = x + cut(decay, carry);
  const T y = x + carry;
  carry = cut(decay, y);
  return y;
}

// Scans sequences that are neighbours in memory: one step of all of them is a vector operation, if the strides permit.
template <Strides kStrides, class T, class Form>
void scan_side_by_side(Cursor<T, Form> cursor, int64_t sequences, int64_t steps) {
  constexpr int64_t kCount = kStrides == Strides::kConstant ? kWide : kStrides == Strides::kPerStep ? kTile : 2 * kLanes;
  T carry[kCount];
  // Where some coefficients have one value per step, the others, which have one value for all data, are repeated for every sequence.
  T repeated[kStrides == Strides::kPerStep ? Form::kCoefficients + 1 : 1][kCount];
  for (int k = 0; k < Form::kCoefficients && kStrides == Strides::kPerStep; ++k)
    if (cursor.step[k] == 0) std::fill(repeated[k], repeated[k] + std::min(kCount, sequences), *cursor.c[k]);
  for (int64_t start = 0; start < sequences; start += kCount) {
    const int64_t count = std::min(kCount, sequences - start);
    std::fill(carry, carry + count, T(0));
    Cursor<T, Form> row = cursor;
    row.advance(row.step, start);
    for (int k = 0; k < Form::kCoefficients && kStrides == Strides::kPerStep; ++k)
      if (cursor.step[k] == 0) row.c[k] = repeated[k];
    if (Form::kReverse) row.advance(row.time, steps - 1);
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = Form::kReverse ? steps - 1 - i : i;
      const bool first = t == 0, last = t == steps - 1;
      INDEPENDENT_STEPS
      for (int64_t n = 0; n < count; ++n) {
        const Step<T, Form, kStrides> s{row, n, 0, first, last};
        const Link<T> link = Form::prologue(s);
        const T neighbour = carry[n];
        const T decay = clears_last_decay<Form> ? unless(last, link.decay) : link.decay;
        const T y = follow<Form::kReverse>(link.x, decay, carry[n]);
        s.finish(y, neighbour);
      }
      row.advance(row.time, Form::kReverse ? -1 : 1);
    }
  }
}

// A tile: x and decay of up to kLanes lanes, one lane after the other. The recurrence replaces x by y. `product`: for scan_parts, the
// products of decays, see recur_step_by_step. `carry`: the carry of each lane, from tile to tile. `x` has one more entry, for the y
// that follows the last y of the tile.
template <class T>
struct Tile {
  alignas(64) T x[kLanes * kTile + 1], decay[kLanes * kTile], product[kLanes * kTile], carry[kLanes];
};

// Calls body(begin, end, first, last) for the steps [from, to). The first step of the data has a separate call if the form sets kFirst, and
// the last step if it sets kLast. In each call, `first` and `last` are constant, so the loop in `body` does not test them at every step.
template <class Form, class Body>
void over_steps(int64_t from, int64_t to, int64_t steps, Body body) {
  if (Form::kFirst && from == 0 && from < to) {
    body(0, 1, true, steps == 1);
    from = 1;
  }
  if (Form::kLast && to == steps && from < to) {
    body(to - 1, to, to == 1, true);
    to -= 1;
  }
  if (from < to) body(from, to, false, false);
}

// Computes x[t] and decay[t] for t in [from, to).
template <class T, class Form>
NOINLINE void prologue(const Cursor<T, Form>& row, int64_t from, int64_t to, bool first, bool last, T* __restrict x, T* __restrict decay) {
  INDEPENDENT_STEPS
  for (int64_t t = from; t < to; ++t) {
    const Link<T> link = Form::prologue(Step<T, Form, Strides::kConstant>{row, t, 0, first, last});
    x[t] = link.x;
    decay[t] = link.decay;
  }
}

// Computes the outputs for t in [from, to). Reads y[to] too.
template <class T, class Form>
NOINLINE void epilogue(const Cursor<T, Form>& row, int64_t from, int64_t to, bool first, bool last, const T* __restrict y) {
  INDEPENDENT_STEPS
  for (int64_t t = from; t < to; ++t)
    Step<T, Form, Strides::kConstant>{row, t, 0, first, last}.finish(y[t], y[t + 1]);
}

// Computes the prologue of the steps [from, from + count) of one lane. x and decay point to the lane's entries in the tile.
template <class T, class Form>
void begin_steps(const Cursor<T, Form>& row, int64_t from, int64_t count, int64_t steps, T* x, T* decay) {
  over_steps<Form>(from, from + count, steps, [&](int64_t begin, int64_t end, bool first, bool last) {
    prologue(row, begin, end, first, last, x - from, decay - from);
  });
  if (clears_last_decay<Form> && from + count == steps) decay[count - 1] = T(0);
}

// Computes the epilogue of the steps [from, from + count) of one lane. y[count] is the y that follows these steps.
template <class T, class Form>
void end_steps(const Cursor<T, Form>& row, int64_t from, int64_t count, int64_t steps, const T* y) {
  over_steps<Form>(from, from + count, steps, [&](int64_t begin, int64_t end, bool first, bool last) {
    epilogue(row, begin, end, first, last, y - from);
  });
}

// Computes the recurrences of kCount lanes over the steps [from, to), one step after the other, from `carry` on. A lane starts `pitch`
// entries after the lane before. With kProduct, the function also computes tile.product: y[t] contains the carry that entered the lane,
// times this factor.
//   reverse form:     product[t] = decay[t] * decay[t+1] * ...   up to the lane's last step
//   transposed form:  product[t] = ... * decay[t-2] * decay[t-1]   from the lane's first step on
// `product` holds the running products of all lanes.
template <bool kReverse, bool kProduct, int64_t kCount, class T>
INLINE void recur_step_by_step(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  for (int64_t i = from; i < to; ++i) {
    const int64_t t = kReverse ? from + to - 1 - i : i;
    for (int64_t n = 0; n < kCount; ++n) {
      const int64_t entry = n * pitch + t;
      if (kProduct) {
        const T before = product[n];
        product[n] *= tile.decay[entry];
        tile.product[entry] = kReverse ? product[n] : before;
      }
      tile.x[entry] = follow<kReverse>(tile.x[entry], tile.decay[entry], carry[n]);
    }
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_VECTORS
#endif
#endif

#if defined(HAS_VECTORS)
#if defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2, NEON. The compiler splits wider vectors into single numbers when it shuffles them.
#endif

template <class T>
constexpr int kWidth = kVectorBytes / int(sizeof(T));  // numbers in a vector
template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};

// Exchanges blocks of kBlock numbers: each second block of `a` with the block before it in the other vector, `b`.
template <int kBlock, class V, int... kIndex>
INLINE void exchange(V& a, V& b, std::integer_sequence<int, kIndex...>) {
  constexpr int kCount = sizeof...(kIndex);
  const V first = __builtin_shufflevector(a, b, (kIndex & kBlock ? kCount + kIndex - kBlock : kIndex)...);
  b = __builtin_shufflevector(a, b, (kIndex & kBlock ? kCount + kIndex : kIndex + kBlock)...);
  a = first;
}

// Transposes a square matrix. Its rows are vectors.
template <int kBlock = 1, class V, int kCount>
INLINE void transpose(V (&rows)[kCount]) {
  if constexpr (kBlock < kCount) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i)
      if (!(i & kBlock)) exchange<kBlock>(rows[i], rows[i + kBlock], std::make_integer_sequence<int, kCount>());
    transpose<2 * kBlock>(rows);
  }
}

// Loads as many steps as a vector has numbers, of as many lanes. columns[k] is step k of these lanes.
template <class V, class T, int kCount>
INLINE void load_columns(V (&columns)[kCount], const T* rows, int64_t pitch) {
#pragma GCC unroll 8
  for (int n = 0; n < kCount; ++n) std::memcpy(&columns[n], rows + n * pitch, sizeof(V));
  transpose(columns);
}

// Stores steps of lanes: the inverse of load_columns. Overwrites `columns`.
template <class V, class T, int kCount>
INLINE void store_columns(V (&columns)[kCount], T* rows, int64_t pitch) {
  transpose(columns);
#pragma GCC unroll 8
  for (int n = 0; n < kCount; ++n) std::memcpy(rows + n * pitch, &columns[n], sizeof(V));
}

// Computes what recur_step_by_step computes, for all lanes, kWidth steps at a time. The steps are transposed, so that one step of kWidth
// lanes is one vector. All groups of kWidth lanes run side by side.
template <bool kReverse, bool kProduct, class T>
INLINE void recur_by_vectors(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  using V = typename Vector<T>::type;
  constexpr int kSteps = kWidth<T>, kGroups = kLanes / kSteps;
  V x[kGroups][kSteps], decay[kGroups][kSteps], carried[kGroups], multiplied[kGroups];
  std::memcpy(carried, carry, sizeof carried);
  std::memcpy(multiplied, product, sizeof multiplied);
  for (int64_t i = from; i < to; i += kSteps) {
    const int64_t t = kReverse ? from + to - kSteps - i : i;
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      load_columns(x[g], tile.x + g * kSteps * pitch + t, pitch);
      load_columns(decay[g], tile.decay + g * kSteps * pitch + t, pitch);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kSteps; ++j) {
      const int k = kReverse ? kSteps - 1 - j : j;
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        V &y = x[g][k], &factor = decay[g][k];
        if (kReverse) {
          y = carried[g] = y + factor * (factor == 0 ? V{} : carried[g]);
        } else {
          y = y + carried[g];
          carried[g] = factor * (factor == 0 ? V{} : y);
        }
        if (kProduct) {
          const V before = multiplied[g];
          multiplied[g] *= factor;
          factor = kReverse ? multiplied[g] : before;
        }
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      store_columns(x[g], tile.x + g * kSteps * pitch + t, pitch);
      if (kProduct) store_columns(decay[g], tile.product + g * kSteps * pitch + t, pitch);
    }
  }
  std::memcpy(carry, carried, sizeof carried);
  std::memcpy(product, multiplied, sizeof multiplied);
}
#else
template <class T>
constexpr int kWidth = 1;

template <bool kReverse, bool kProduct, class T>
INLINE void recur_by_vectors(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  recur_step_by_step<kReverse, kProduct, kLanes>(tile, pitch, from, to, carry, product);
}
#endif

// Computes the recurrences of all lanes of a tile over `count` steps. With kProduct, tile.decay[n] is then the product of all decays of
// lane n.
template <bool kReverse, bool kProduct, class T>
void recur(Tile<T>& tile, int64_t pitch, int64_t count) {
  T carry[kLanes], product[kLanes];
  std::copy(tile.carry, tile.carry + kLanes, carry);
  std::fill(product, product + kLanes, T(1));
  const int64_t rest = count % kWidth<T>;
  if (kReverse) recur_step_by_step<kReverse, kProduct, kLanes>(tile, pitch, count - rest, count, carry, product);
  recur_by_vectors<kReverse, kProduct>(tile, pitch, 0, count - rest, carry, product);
  if (!kReverse) recur_step_by_step<kReverse, kProduct, kLanes>(tile, pitch, count - rest, count, carry, product);
  std::copy(carry, carry + kLanes, tile.carry);
  if (kProduct) std::copy(product, product + kLanes, tile.decay);
}

// Returns whether whole sequences are contiguous in memory, one after the other, and fit a tile.
template <class T, class Form>
bool are_one_run(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t steps) {
  bool one = steps <= kTile;
  for (int k = 0; k < Cursor<T, Form>::kOperands; ++k) one = one && lane_stride[k] == steps * cursor.step[k];
  return one;
}

// Calls body(step, t) for the first and the last step of every sequence, if the form sets kFirst and kLast. `t` is the index in the run.
template <class T, class Form, class Body>
void over_edges(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t lanes, int64_t steps, Body body) {
  const auto edge = [&](int64_t t) {
    Cursor<T, Form> column = cursor;
    column.advance(cursor.step, t);
    std::copy(lane_stride, lane_stride + Cursor<T, Form>::kOperands, column.step);
    INDEPENDENT_STEPS
    for (int64_t n = 0; n < lanes; ++n) body(Step<T, Form, Strides::kAny>{column, n, 0, t == 0, t == steps - 1}, n * steps + t);
  };
  if (Form::kFirst) edge(0);
  if (Form::kLast) edge(steps - 1);
}

// Scans sequences that are contiguous in memory, one after the other. Prologue and epilogue each run over the steps of all sequences in one
// loop, as if these were steps of one sequence, and then again over the first and last steps.
template <class T, class Form>
void scan_run(Tile<T>& tile, const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t lanes, int64_t steps) {
  const int64_t from = Form::kFirst, to = lanes * steps - Form::kLast;
  prologue(cursor, from, to, false, false, tile.x, tile.decay);
  over_edges(cursor, lane_stride, lanes, steps, [&](const auto& step, int64_t t) {
    const Link<T> link = Form::prologue(step);
    tile.x[t] = link.x;
    tile.decay[t] = link.decay;
  });
  for (int64_t n = 0; clears_last_decay<Form> && n < lanes; ++n) tile.decay[(n + 1) * steps - 1] = T(0);
  recur<Form::kReverse, false>(tile, steps, steps);
  epilogue(cursor, from, to, false, false, tile.x);
  over_edges(cursor, lane_stride, lanes, steps, [&](const auto& step, int64_t t) {
    step.finish(tile.x[t], step.last ? T(0) : tile.x[t + 1]);
  });
}

// Scans up to kLanes sequences that are contiguous in time, tile by tile along time.
template <class T, class Form>
void scan_rows(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t lanes, int64_t steps) {
  Tile<T> tile;
  std::fill(tile.carry, tile.carry + kLanes, T(0));
  if (lanes < kLanes) {  // no output contains the results of unused lanes, but the input of these lanes must be initialised
    std::fill(tile.x, tile.x + kLanes * kTile, T(0));
    std::fill(tile.decay, tile.decay + kLanes * kTile, T(0));
  }
  if (are_one_run(cursor, lane_stride, steps)) return scan_run(tile, cursor, lane_stride, lanes, steps);
  for (int64_t done = 0; done < steps; done += kTile) {
    const int64_t count = std::min(kTile, steps - done), from = Form::kReverse ? steps - done - count : done;
    Cursor<T, Form> row = cursor;
    for (int64_t n = 0; n < lanes; ++n, row.advance(lane_stride, 1))
      begin_steps(row, from, count, steps, tile.x + n * kTile, tile.decay + n * kTile);
    T carried[kLanes];
    std::copy(tile.carry, tile.carry + kLanes, carried);
    recur<Form::kReverse, false>(tile, kTile, count);
    row = cursor;
    for (int64_t n = 0; n < lanes; ++n, row.advance(lane_stride, 1)) {
      T* y = tile.x + n * kTile;
      const T following = y[count];  // in a full tile this entry is the next lane's first
      y[count] = carried[n];
      end_steps(row, from, count, steps, y);
      y[count] = following;
    }
  }
}

// Returns whether no entry of y is NaN or infinite.
template <class T>
NOINLINE bool are_finite(const T* y, int64_t count) {
  int found = 0;
  for (int64_t t = 0; t < count; ++t) found |= !(std::abs(y[t]) <= std::numeric_limits<T>::max());
  return found == 0;
}

// Scans one long sequence. kLanes consecutive parts of the sequence are the lanes of a tile. The recurrences of the parts start from 0.
// Then, part after part in the order of the scan, the function adds product[t] * (the carry that enters the part) to y[t].
//
// A product of decays can underflow to 0 or overflow to infinity where the recurrence itself does neither. A product that overflows, or meets
// NaN or infinity, leaves a result that is not finite. The function then computes the tile again, step by step. A product that underflows
// drops a finite contribution, which is not detected.
template <class T, class Form>
void scan_parts(const Cursor<T, Form>& row, int64_t steps) {
  Tile<T> tile;
  T carry(0);
  for (int64_t done = 0; done < steps;) {
    const int64_t part = std::min(kTile, (steps - done) / kLanes);
    const int64_t count = part > 0 ? part * kLanes : steps - done, from = Form::kReverse ? steps - done - count : done;
    const T carried = carry;
    begin_steps(row, from, count, steps, tile.x, tile.decay);
    if (part > 0) {
      std::fill(tile.carry, tile.carry + kLanes, T(0));
      recur<Form::kReverse, true>(tile, part, part);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t n = Form::kReverse ? kLanes - 1 - i : i;
        T* x = tile.x + n * part;
        const T* product = tile.product + n * part;
        const T entering = carry;
        carry = tile.carry[n];
        if (entering == T(0)) continue;  // nothing to add, and an overflowed product times 0 would be NaN
        for (int64_t t = 0; t < part; ++t) x[t] += product[t] * entering;
        carry += tile.decay[n] * entering;
      }
    }
    if (part == 0 || !are_finite(tile.x, count) || !are_finite(&carry, 1)) {
      if (part > 0) begin_steps(row, from, count, steps, tile.x, tile.decay);
      carry = carried;
      recur_step_by_step<Form::kReverse, false, 1>(tile, count, 0, count, &carry, &carry);
    }
    tile.x[count] = carried;
    end_steps(row, from, count, steps, tile.x);
    done += count;
  }
}

// Scans all sequences along the lane dimension, which are contiguous in time.
template <class T, class Form>
void scan_in_time(const Cursor<T, Form>& cursor, const Dim& lane, int64_t steps) {
  const bool in_parts = lane.size < kLanes && steps >= kMinStepsForParts;
  Cursor<T, Form> row = cursor;
  for (int64_t n = 0; n < lane.size; n += in_parts ? 1 : kLanes, row.advance(lane.stride, in_parts ? 1 : kLanes)) {
    if (in_parts)
      scan_parts(row, steps);
    else
      scan_rows(row, lane.stride, std::min(kLanes, lane.size - n), steps);
  }
}

// Drops batch dimensions of size 1, and merges neighbouring dimensions that one stride describes in every operand. Returns the number of
// dimensions that remain.
int merge(Dim* dims, int count, int operands) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (dims[i].size == 1) continue;
    if (kept > 0) {
      Dim& outer = dims[kept - 1];
      bool one = true;
      for (int k = 0; k < operands; ++k) one = one && outer.stride[k] == dims[i].stride[k] * dims[i].size;
      if (one) {
        outer.size *= dims[i].size;
        std::copy(dims[i].stride, dims[i].stride + operands, outer.stride);
        continue;
      }
    }
    dims[kept++] = dims[i];
  }
  return kept;
}

// Advises the system to use huge pages for a large output. For each new page, the system handles a page fault and fills the page with
// zeros, which takes longer than the scan. With huge pages, there are 512 times fewer pages.
template <class T>
void expect_pages(T* data, const Dim* batch, int batch_dims, const Dim& time, int operand) {
#if defined(__linux__)
  constexpr int64_t kHugePage = 1 << 21;
  int64_t last = (time.size - 1) * time.stride[operand];
  for (int d = 0; d < batch_dims; ++d) last += (batch[d].size - 1) * batch[d].stride[operand];
  if (last * int64_t(sizeof(T)) < kHugePage / 2) return;
  // Round outwards to whole huge pages. The advice does not change the other data in these pages.
  const int64_t begin = reinterpret_cast<int64_t>(data) / kHugePage * kHugePage;
  const int64_t end = (reinterpret_cast<int64_t>(data + last) / kHugePage + 1) * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Scans all data of a form. `data` has a pointer for every operand: coefficients, values, flags, outputs. Changes `batch`.
template <class Form, class T>
void scan(void* const* data, Dim* batch, int batch_dims, const Dim& time) {
  using Here = Cursor<T, Form>;
  constexpr int kFirstOutput = Here::kInputs;
  batch_dims = merge(batch, batch_dims, Here::kOperands);
  for (int k = kFirstOutput; k < Here::kOperands; ++k) expect_pages(static_cast<T*>(data[k]), batch, batch_dims, time, k);
  // The lane dimension is the batch dimension with the smallest stride in the first output.
  Dim lane{1, {}};
  if (batch_dims > 0) {
    Dim* closest = std::min_element(
        batch, batch + batch_dims, [](const Dim& a, const Dim& b) { return a.stride[kFirstOutput] < b.stride[kFirstOutput]; });
    lane = *closest;
    std::copy(closest + 1, batch + batch_dims, closest);
    --batch_dims;
  }
  // scan_in_time needs values, flags and outputs that are contiguous in time, and coefficients that are constant in time. It
  // is faster if there are few lanes, or if steps are closer in memory than lanes.
  const bool prefers_time = lane.size < kLanes || time.stride[kFirstOutput] < lane.stride[kFirstOutput];
  Here cursor(data, time, time);
  const bool in_time = prefers_time && cursor.strides == Strides::kConstant;
  if (!in_time) cursor = Here(data, lane, time);
  // Loop over the other batch dimensions.
  int64_t index[kMaxDims] = {};
  for (;;) {
    if (in_time)
      scan_in_time(cursor, lane, time.size);
    else if (cursor.strides == Strides::kConstant)
      scan_side_by_side<Strides::kConstant>(cursor, lane.size, time.size);
    else if (cursor.strides == Strides::kPerStep)
      scan_side_by_side<Strides::kPerStep>(cursor, lane.size, time.size);
    else
      scan_side_by_side<Strides::kAny>(cursor, lane.size, time.size);
    int d = batch_dims - 1;
    for (; d >= 0; --d) {
      cursor.advance(batch[d].stride, 1);
      if (++index[d] < batch[d].size) break;
      cursor.advance(batch[d].stride, -batch[d].size);
      index[d] = 0;
    }
    if (d < 0) return;
  }
}

}  // namespace
