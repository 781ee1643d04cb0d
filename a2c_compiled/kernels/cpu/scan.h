// The scan, shared by all forms. A form is a recurrence along time with its inputs and outputs, see kernels/scan_forms.py.
//
//   reverse form:     y[t] = x[t] + decay[t] * y[t+1],     with y[T] = 0
//   transposed form:  y[t] = x[t] + decay[t-1] * y[t-1],   with y[-1] = 0
//
// Where the decay is 0 the product is left out, so NaN and infinity beyond an episode's end have no effect.
//
// The loop. scan() at the end of this file picks one batch dimension, the lane dimension, and loops over the other batch dimensions. For
// each index of these, one of four loops handles all sequences along the lane dimension:
//
//   scan_side_by_side  Neighbouring sequences are neighbours in memory. The outer loop runs over time, the inner loop over up to kWide
//                      sequences, in vectors. Carries (the values passed from step to step) stay in an array on the stack.
//   scan_runs          Neighbouring steps are neighbours in memory, sequences are short, and each begins where the one before it ends. The
//                      loop takes several sequences for one long one, a run, and sets the decay of their last steps to 0. Up to kLanes
//                      runs are the lanes of a tile.
//   scan_rows          Neighbouring steps are neighbours in memory. The loop processes kLanes sequences at once, and kTile steps of each.
//                      It computes the prologues of that tile in vectors along time, then the recurrences of all lanes side by side, then
//                      the epilogues.
//   scan_parts         The memory is as for scan_rows, but there are fewer than kLanes sequences, of at least kMinStepsForParts steps. The
//                      loop uses kLanes parts of one sequence in place of kLanes sequences, and then adds the contribution of the value
//                      that enters each part. If a result is NaN or infinite, the loop recomputes the steps one after the other.
//
// Why: a step depends on the step before it. Independent recurrences, computed together, hide this latency. The prologue computes x and
// decay from the inputs, the epilogue the outputs from y, see forms.h. Prologue and epilogue have no such dependence, so they run in
// vectors along time, and a tile keeps x and decay in the first-level cache in between.
//
// Operands with other strides, or in half precision, are copied, block by block, so that one of these loops can read them: scan_copies.
//
// Threads: a large scan is divided among the threads of torch's pool, by sequences. The division does not change a result. module.cpp
// releases the GIL during the scan. Exception: call() keeps it for small scans.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numeric>

#include "copies.h"
#include "forms.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {  // internal linkage: one source file includes this

constexpr int kMaxDims = 16, kMaxOperands = 21;
constexpr int64_t kLanes = kWidth<float> > 8 ? kWidth<float> : 8;  // sequences, or parts of one, whose recurrences run side by side
constexpr int64_t kTile = 128;             // steps of a lane in a tile; a tile fits the first-level cache
constexpr int64_t kRun = 256 / kLanes;     // steps of a run of short sequences. With more, the loops over a tile no longer overlap.
constexpr int64_t kWide = 1024;            // largest number of sequences in the inner loop of scan_side_by_side
constexpr int64_t kMinStepsForRows = 16;   // shorter sequences that are not contiguous, one after the other, are copied so that they are
constexpr int64_t kMinStepsForParts = 64;  // with fewer than kLanes sequences, the smallest number of steps for scan_parts
// The smallest piece for a thread: numbers of sequences for scan_rows and for scan_side_by_side, whose narrow rows gain nothing, and a number of
// steps for scan_runs.
constexpr int64_t kPieceOfRows = 32, kPieceSideBySide = 128, kStepsOfPiece = 1 << 14;
constexpr int64_t kMinNumbersPerThread = 1 << 18;  // values and outputs that one thread reads and writes at least

// Calls body(begin, end, context) for ranges that cover [begin, end), of at least `grain`, in the threads of a pool. Returns 0 if it
// succeeded. Nullptr: there is no pool. This is `torch_parallel_for` of torch's stable C interface.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
std::atomic<ParallelFor> parallel_for{nullptr};

// A dimension of the data: its size, and its stride in every operand.
struct Dim {
  int64_t size;
  int64_t stride[kMaxOperands];  // in elements
};

// The strides of the coefficients along the inner loop. Every value, flag and output has stride 1.
enum class Strides {
  kConstant,  // every coefficient has stride 0
  kPerStep    // every coefficient has stride 0 or 1
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
    strides = std::all_of(step, step + kValue, [](int64_t stride) { return stride == 0; }) ? Strides::kConstant : Strides::kPerStep;
  }

  // Moves every operand by `by` entries of a dimension with these strides.
  void advance(const int64_t* stride, int64_t by) {
    for (int k = 0; k < Form::kCoefficients; ++k) c[k] += by * stride[k];
    for (int k = 0; k < Form::kValues; ++k) v[k] += by * stride[kValue + k];
    for (int k = 0; k < Form::kFlags; ++k) f[k] += by * stride[kFlag + k];
    for (int k = 0; k < Form::kOutputs; ++k) out[k] += by * stride[kInputs + k];
  }
};

// The coefficients that are equal for all steps of an inner loop, read once. The compiler would read them again for each step, because for
// all it knows the outputs overlap them. Along the lanes, the steps before and after have coefficients of their own. Where these steps are
// missing, the coefficients of the steps here stand for theirs.
template <class T, class Form>
struct Fixed {
  static constexpr int kPitch = Form::kCoefficients + 1;
  T numbers[3 * kPitch] = {};  // before, here, after

  // `back` and `forth`: whether the coefficients change with time and there is a step before and after.
  Fixed(const Cursor<T, Form>& cursor, bool back, bool forth) {
    for (int k = 0; k < Form::kCoefficients; ++k) {
      numbers[k] = cursor.c[k][-int64_t(back) * cursor.time[k]];
      numbers[kPitch + k] = cursor.c[k][0];
      numbers[2 * kPitch + k] = cursor.c[k][int64_t(forth) * cursor.time[k]];
    }
  }
  const T* here() const { return numbers + kPitch; }
};

// kCount steps that are neighbours along the inner loop, the argument of a form's functions. An operand is loaded only when the form reads
// it. With kInTime, the inner loop runs along time.
template <class T, class Form_, Strides kStrides, bool kInTime, int kCount>
struct Step {
  using Form = Form_;
  using Real = Pack<T, kCount>;
  using Mask = PackMask<T, kCount>;
  using Here = Cursor<T, Form>;
  const Here& cursor;
  const T* fixed;  // with Strides::kConstant, the coefficients
  int64_t i, shift;  // the index of the first step in the inner loop, and an offset in time
  Mask first, last;  // whether the step is the first and the last of its sequence
  // Whether the memory has steps before and after these. The form ignores what it reads before a first step and after a last one, but must
  // not read outside of the data.
  bool has_before, has_after;

  // f() returns true for the done flag of an excluded step, so a form ignores the coefficients of that step, as at an episode's end.
  INLINE Real c(int k) const {
    if constexpr (kStrides == Strides::kConstant) return repeat<Real>(fixed[k]);
    if (kStrides == Strides::kPerStep && cursor.step[k] == 0) return repeat<Real>(cursor.c[k][shift * cursor.time[k]]);
    return load<Real>(cursor.c[k] + index(k, shift));
  }
  INLINE Real v(int k) const {
    const Real value = load<Real>(cursor.v[k] + index(Here::kValue + k, shift));
    if constexpr (is_masked<Form>) return unless(excluded(0), value);
    return value;
  }
  INLINE Mask f(int k) const {
    Mask flag = load_flags<Mask, kCount>(cursor.f[k] + index(Here::kFlag + k, shift));
    if constexpr (is_masked<Form>) {
      flag = flag | excluded(0);
      if (k == kDone) flag = flag | (excluded(has_after) & (last == Mask{}));
    }
    return flag;
  }
  INLINE int64_t index(int operand, int64_t shift) const {
    if constexpr (kInTime) return i + shift;
    return i + shift * cursor.time[operand];
  }
  // Returns whether the mask excludes the step that follows this one by `later` steps.
  INLINE Mask excluded(int64_t later) const {
    return load_flags<Mask, kCount>(cursor.f[Form::kMask] + index(Here::kFlag + Form::kMask, shift + later)) == Mask{};
  }
  INLINE Step before() const {
    const T* const its_fixed = fixed - Fixed<T, Form>::kPitch;
    return {cursor, its_fixed, i, -int64_t(has_before), Mask{}, has_before ? Mask{} : last, false, has_before || has_after};
  }
  INLINE Step after() const { return {cursor, fixed + Fixed<T, Form>::kPitch, i, has_after, Mask{}, last, false, false}; }

  // Computes the outputs of these steps and stores them.
  INLINE void finish(const Real* kept, Real y, Real y_after) const {
    Real results[Form::kOutputs];
    Form::epilogue(*this, kept, y, y_after, results);
    for (int k = 0; k < Form::kOutputs; ++k) {
      if constexpr (is_masked<Form>) results[k] = unless(excluded(0), results[k]);
      store(cursor.out[k] + index(Here::kInputs + k, 0), results[k]);
    }
  }
};

// Whether the form itself sets the decay of the last step to 0. Otherwise the scan does: an infinite decay times y[T] = 0 would be NaN.
template <class Form>
constexpr bool clears_last_decay = false;
template <>
constexpr bool clears_last_decay<TdLambda> = true;  // its trace is 0 at the last step
template <>
constexpr bool clears_last_decay<TdLambdaBackward> = true;
template <class Form>
constexpr bool clears_last_decay<Masked<Form>> = clears_last_decay<Form>;

// Returns the prologue of steps, with decay 0 at the last step of a sequence.
template <class S>
INLINE Link<typename S::Real> begin(const S& step) {
  Link<typename S::Real> link = S::Form::prologue(step);
  if (!clears_last_decay<typename S::Form>) link.decay = unless(step.last, link.decay);
  return link;
}

// One step of the recurrence: returns y[t] and updates `carry`. In a reverse form carry is y[t+1] before and y[t] after. In a transposed
// form it is decay[t-1] * y[t-1] before and decay[t] * y[t] after.
template <bool kReverse, class V>
INLINE V follow(V x, V decay, V& carry) {
  if (kReverse) return carry = x + cut(decay, carry);
  const V y = x + carry;
  carry = cut(decay, y);
  return y;
}

// Calls body(width, i) for vectors of steps that cover [from, to): a call handles the steps [i, i + width). The last vector may overlap
// the one before it. If there are fewer steps than a vector has numbers, or kCount is 1, the width is 1.
template <int kCount>
using Width = std::integral_constant<int, kCount>;
template <int kCount, class Body>
INLINE void in_vectors(int64_t from, int64_t to, Body body) {
  int64_t i = from;
  if (kCount > 1 && to - from >= kCount) {
    for (;;) {
      body(Width<kCount>(), i);
      i += kCount;
      if (i <= to - kCount) continue;
      if (i >= to) return;
      i = to - kCount;
    }
  }
  for (; i < to; ++i) body(Width<1>(), i);
}

// Scans sequences that are neighbours in memory: one step of several of them is a vector.
template <Strides kStrides, class T, class Form>
void scan_side_by_side(Cursor<T, Form> cursor, int64_t sequences, int64_t steps) {
  constexpr int kCount = kWidth<T>;
  T carry[kWide], tail[kCount];
  for (int64_t start = 0; start < sequences; start += kWide) {
    const int64_t count = std::min(kWide, sequences - start);
    std::fill(carry, carry + count, T(0));
    Cursor<T, Form> row = cursor;
    row.advance(row.step, start);
    if (Form::kReverse) row.advance(row.time, steps - 1);
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = Form::kReverse ? steps - 1 - i : i;
      const bool first = t == 0, last = t == steps - 1;
      const Fixed<T, Form> fixed(row, !first, !last);
      // The last vector may overlap the one before it, so it needs the carries from before that.
      if (count >= kCount) store(tail, load<Pack<T, kCount>>(carry + count - kCount));
      in_vectors<kCount>(0, count, [&](auto width, int64_t n) {
        using S = Step<T, Form, kStrides, false, decltype(width)::value>;
        using Real = typename S::Real;
        using Mask = typename S::Mask;
        const S s{row, fixed.here(), n, 0, repeat_condition<Mask>(first), repeat_condition<Mask>(last), !first, !last};
        const Link<Real> link = begin(s);
        const Real neighbour = load<Real>(n == count - width && width == kCount ? tail : carry + n);
        Real carried = neighbour;
        const Real y = follow<Form::kReverse>(link.x, link.decay, carried);
        s.finish(link.kept, y, neighbour);
        store(carry + n, carried);
      });
      row.advance(row.time, Form::kReverse ? -1 : 1);
    }
  }
}

// A tile: x, decay and what the prologue keeps, of up to kLanes lanes, one lane after the other. The recurrence replaces x by y. `product`:
// for scan_parts, the products of decays, see recur_step_by_step. `carry`: the carry of each lane, from tile to tile. `x` has one more entry,
// for the y that follows the last y of the tile.
template <class T>
struct Tile {
  alignas(64) T x[kLanes * kTile + 1], decay[kLanes * kTile], product[kLanes * kTile], kept[2][kLanes * kTile], carry[kLanes];
};

// Calls body(step, t) for the steps [from, to) of a lane of `steps` steps. With kInRun, the lane is a run of sequences, and ends[t] is -1 if
// step from + t is the last of its sequence, else 0, with ends[-1] = -1. The first step has a call of its own if the form sets kFirst, and
// the last step if it sets kLast, because the memory may have no step before and after these.
template <Strides kStrides, bool kInRun, class T, class Form, class Body>
INLINE void over_steps(
    const Cursor<T, Form>& lane, int64_t from, int64_t to, int64_t steps, const SignedBits<T>* ends, Body body) {
  const int64_t origin = from;
  const Fixed<T, Form> fixed(lane, false, false);
  const auto call = [&](auto width, int64_t t) {
    constexpr int kCount = decltype(width)::value;
    using S = Step<T, Form, kStrides, true, kCount>;
    const bool at_start = kCount == 1 && t == 0, at_end = kCount == 1 && t == steps - 1;
    if constexpr (kInRun) {
      using Mask = typename S::Mask;
      body(S{lane, fixed.here(), t, 0, load_mask<Mask>(ends + t - origin - 1), load_mask<Mask>(ends + t - origin), !at_start, !at_end}, t);
    } else if constexpr (kCount == 1) {
      body(S{lane, fixed.here(), t, 0, at_start, at_end, !at_start, !at_end}, t);
    } else {
      body(S{lane, fixed.here(), t, 0, {}, {}, true, true}, t);
    }
  };
  const auto call_once = [&](int64_t t) { call(Width<1>(), t); };
  if (Form::kFirst && from == 0 && from < to) call_once(from++);
  if (Form::kLast && to == steps && from < to) call_once(--to);
  in_vectors<kWidth<T>>(from, to, call);
}

// Computes the prologue of the steps [from, from + count) of a lane. `entry` is the lane's first entry in the tile.
template <Strides kStrides, bool kInRun, class T, class Form>
INLINE void begin_steps(const Cursor<T, Form>& lane, int64_t from, int64_t count, int64_t steps, const SignedBits<T>* ends,
                        Tile<T>& tile, int64_t entry) {
  over_steps<kStrides, kInRun>(lane, from, from + count, steps, ends, [&](const auto& step, int64_t t) {
    const auto link = begin(step);
    const int64_t at = entry + t - from;
    store(tile.x + at, link.x);
    store(tile.decay + at, link.decay);
    for (int k = 0; k < Form::kKept; ++k) store(tile.kept[k] + at, link.kept[k]);
  });
  if (from + count == steps) tile.decay[entry + count - 1] = T(0);
}

// Computes the epilogue of the steps [from, from + count) of a lane. tile.x[entry + count] is the y that follows these steps.
template <Strides kStrides, bool kInRun, class T, class Form>
INLINE void end_steps(const Cursor<T, Form>& lane, int64_t from, int64_t count, int64_t steps, const SignedBits<T>* ends,
                      const Tile<T>& tile, int64_t entry) {
  over_steps<kStrides, kInRun>(lane, from, from + count, steps, ends, [&](const auto& step, int64_t t) {
    using Real = typename std::decay_t<decltype(step)>::Real;
    const int64_t at = entry + t - from;
    Real kept[Form::kKept + 1];
    for (int k = 0; k < Form::kKept; ++k) kept[k] = load<Real>(tile.kept[k] + at);
    step.finish(kept, load<Real>(tile.x + at), load<Real>(tile.x + at + 1));
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

// Loads as many steps as a vector has numbers, of as many lanes. columns[k] is step k of these lanes.
template <class V, class T, int kCount>
INLINE void load_columns(V (&columns)[kCount], const T* rows, int64_t pitch) {
#pragma GCC unroll 16
  for (int n = 0; n < kCount; ++n) columns[n] = load<V>(rows + n * pitch);
  transpose(columns);
}

// Stores steps of lanes: the inverse of load_columns. Overwrites `columns`.
template <class V, class T, int kCount>
INLINE void store_columns(V (&columns)[kCount], T* rows, int64_t pitch) {
  transpose(columns);
#pragma GCC unroll 16
  for (int n = 0; n < kCount; ++n) store(rows + n * pitch, columns[n]);
}

// Computes what recur_step_by_step computes, for all lanes, as many steps at a time as a vector has numbers. These steps are transposed, so
// that one step of as many lanes is one vector. All groups of lanes run side by side.
template <bool kReverse, bool kProduct, class T>
INLINE void recur_by_vectors(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  constexpr int kSteps = kWidth<T>, kGroups = kLanes / kSteps;
  using V = Pack<T, kSteps>;
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
#pragma GCC unroll 16
    for (int j = 0; j < kSteps; ++j) {
      const int k = kReverse ? kSteps - 1 - j : j;
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        V &y = x[g][k], &factor = decay[g][k];
        y = follow<kReverse>(y, factor, carried[g]);
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

// Computes the recurrences of all lanes of a tile over `count` steps. With kProduct, tile.decay[n] is then the product of all decays of
// lane n.
template <bool kReverse, bool kProduct, class T>
NOINLINE void recur(Tile<T>& tile, int64_t pitch, int64_t count) {
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

// Returns whether sequences are contiguous in memory, one after the other, and fit a tile.
template <class T, class Form>
bool form_runs(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t steps) {
  bool one = steps <= kTile;
  for (int k = 0; k < Cursor<T, Form>::kOperands; ++k) one = one && lane_stride[k] == steps * cursor.step[k];
  return one;
}

// Returns the number of sequences in a run.
template <class T>
int64_t sequences_in_run(int64_t steps) {
  const int64_t most = std::max<int64_t>(1, kRun / steps);
  // So many more that the steps of a run fill whole vectors.
  const int64_t unit = kWidth<T> / std::gcd(steps, int64_t(kWidth<T>)), whole = (most + unit - 1) / unit * unit;
  return whole * steps <= kTile ? whole : most;
}

// Scans sequences that are contiguous in memory, one after the other: as many as fit a lane are one long sequence.
template <Strides kStrides, class T, class Form>
void scan_runs(const Cursor<T, Form>& given, int64_t sequences, int64_t steps) {
  const Cursor<T, Form> cursor = given;
  Tile<T> tile;
  const int64_t most = sequences_in_run<T>(steps);
  SignedBits<T> ends[kLanes * kTile + 1];  // ends[t + 1]: -1 if step t is the last of its sequence, else 0
  const int64_t entries = std::min(sequences, kLanes * most) * steps, all = sequences * steps;
  std::fill(ends, ends + entries + 1, 0);
  for (int64_t t = 0; t <= entries; t += steps) ends[t] = -1;
  for (int64_t done = 0; done < all;) {
    const int64_t left = (all - done) / steps, pitch = std::min(most, (left + kLanes - 1) / kLanes) * steps;
    const int64_t count = std::min(all - done, kLanes * pitch);
    begin_steps<kStrides, true>(cursor, done, count, all, ends + 1, tile, 0);
    // The recurrence reads the entries of unused lanes too.
    std::fill(tile.x + count, tile.x + kLanes * pitch, T(0));
    std::fill(tile.decay + count, tile.decay + kLanes * pitch, T(0));
    std::fill(tile.carry, tile.carry + kLanes, T(0));
    recur<Form::kReverse, false>(tile, pitch, pitch);
    tile.x[count] = T(0);
    end_steps<kStrides, true>(cursor, done, count, all, ends + 1, tile, 0);
    done += count;
  }
}

// Starts to load the operands of the steps [from, to) of a lane. A tile reads many short stretches of memory, far apart from each other. The
// processor does not see in time that a stretch goes on in the next tile.
template <class T, class Form>
INLINE void prefetch_steps(const Cursor<T, Form>& lane, int64_t from, int64_t to) {
  constexpr int64_t kLine = 64;
  for (int64_t t = from; t < to; t += kLine / sizeof(T)) {
    for (int k = 0; k < Form::kValues; ++k) PREFETCH(lane.v[k] + t, 0);
    for (int k = 0; k < Form::kOutputs; ++k) PREFETCH(lane.out[k] + t, 1);
    for (int k = 0; k < Form::kCoefficients; ++k)
      if (lane.step[k] != 0) PREFETCH(lane.c[k] + t, 0);
  }
  for (int64_t t = from; t < to; t += kLine)
    for (int k = 0; k < Form::kFlags; ++k) PREFETCH(lane.f[k] + t, 0);
}

// Scans up to kLanes sequences that are contiguous in time, tile by tile along time.
template <Strides kStrides, class T, class Form>
void scan_rows(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t lanes, int64_t steps) {
  Tile<T> tile;
  std::fill(tile.carry, tile.carry + kLanes, T(0));
  if (lanes < kLanes) {  // no output contains the results of unused lanes, but the input of these lanes must be initialised
    std::fill(tile.x, tile.x + kLanes * kTile, T(0));
    std::fill(tile.decay, tile.decay + kLanes * kTile, T(0));
  }
  for (int64_t done = 0; done < steps; done += kTile) {
    const int64_t count = std::min(kTile, steps - done), from = Form::kReverse ? steps - done - count : done;
    Cursor<T, Form> row = cursor;
    const int64_t next = Form::kReverse ? std::max<int64_t>(0, from - kTile) : from + count;
    const int64_t next_end = Form::kReverse ? from : std::min(steps, next + kTile);
    for (int64_t n = 0; n < lanes; ++n, row.advance(lane_stride, 1)) {
      prefetch_steps(row, next, next_end);
      begin_steps<kStrides, false>(row, from, count, steps, nullptr, tile, n * kTile);
    }
    T carried[kLanes];
    std::copy(tile.carry, tile.carry + kLanes, carried);
    recur<Form::kReverse, false>(tile, kTile, count);
    row = cursor;
    for (int64_t n = 0; n < lanes; ++n, row.advance(lane_stride, 1)) {
      T* y = tile.x + n * kTile;
      const T following = y[count];  // in a full tile this entry is the next lane's first
      y[count] = carried[n];
      end_steps<kStrides, false>(row, from, count, steps, nullptr, tile, n * kTile);
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
template <Strides kStrides, class T, class Form>
void scan_parts(const Cursor<T, Form>& row, int64_t steps) {
  Tile<T> tile;
  T carry(0);
  for (int64_t done = 0; done < steps;) {
    const int64_t part = std::min(kTile, (steps - done) / kLanes);
    const int64_t count = part > 0 ? part * kLanes : steps - done, from = Form::kReverse ? steps - done - count : done;
    const T carried = carry;
    begin_steps<kStrides, false>(row, from, count, steps, nullptr, tile, 0);
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
      if (part > 0) begin_steps<kStrides, false>(row, from, count, steps, nullptr, tile, 0);
      carry = carried;
      recur_step_by_step<Form::kReverse, false, 1>(tile, count, 0, count, &carry, &carry);
    }
    tile.x[count] = carried;
    end_steps<kStrides, false>(row, from, count, steps, nullptr, tile, 0);
    done += count;
  }
}

// Scans all sequences along the lane dimension, which are contiguous in time.
template <Strides kStrides, class T, class Form>
void scan_in_time(const Cursor<T, Form>& cursor, const Dim& lane, int64_t steps) {
  const bool in_parts = lane.size < kLanes && steps >= kMinStepsForParts;
  if (!in_parts && form_runs(cursor, lane.stride, steps)) return scan_runs<kStrides>(cursor, lane.size, steps);
  Cursor<T, Form> row = cursor;
  for (int64_t n = 0; n < lane.size; n += in_parts ? 1 : kLanes, row.advance(lane.stride, in_parts ? 1 : kLanes)) {
    if (in_parts)
      scan_parts<kStrides>(row, steps);
    else
      scan_rows<kStrides>(row, lane.stride, std::min(kLanes, lane.size - n), steps);
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

// Advises the system to use huge pages for a large output, whose last element is `last` bytes after its first one. For each new page, the
// system handles a page fault and fills the page with zeros, which takes longer than the scan. With huge pages, there are 512 times fewer
// pages.
void expect_pages(void* data, int64_t last) {
#if defined(__linux__)
  constexpr int64_t kHugePage = 1 << 21;
  if (last < kHugePage / 2) return;
  // Round outwards to whole huge pages. The advice does not change the other data in these pages.
  const int64_t begin = reinterpret_cast<int64_t>(data) / kHugePage * kHugePage;
  const int64_t end = ((reinterpret_cast<int64_t>(data) + last) / kHugePage + 1) * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Scans all sequences along the lane dimension, with the inner loop along time or along the lanes.
template <class Form, class T>
void scan_lanes(void* const* data, const Dim& lane, const Dim& time, bool in_time) {
  const Cursor<T, Form> cursor(data, in_time ? time : lane, time);
  const bool constant = cursor.strides == Strides::kConstant;
  if (in_time && constant)
    scan_in_time<Strides::kConstant>(cursor, lane, time.size);
  else if (in_time)
    scan_in_time<Strides::kPerStep>(cursor, lane, time.size);
  else if (constant)
    scan_side_by_side<Strides::kConstant>(cursor, lane.size, time.size);
  else
    scan_side_by_side<Strides::kPerStep>(cursor, lane.size, time.size);
}

// How the operands of a form are read: in place or from copies.
template <class Form, class T>
struct Plan {
  using Here = Cursor<T, Form>;
  Stored stored;
  bool in_time;  // whether the inner loop runs along time
  bool copied[Here::kOperands];
  int64_t copied_bytes = 0;  // of one step of one sequence
  int64_t block;  // sequences that are copied together
  int64_t piece;  // sequences of one thread, at least. A piece begins where the whole scan begins a block or a tile of runs.

  Plan(const Dim& lane, const Dim& time, Stored stored) : stored(stored) {
    constexpr int kFirstOutput = Here::kInputs;
    bool lane_fits = true, time_fits = true;
    for (int k = 0; k < Here::kOperands; ++k) {
      lane_fits = lane_fits && fits(k, lane);
      time_fits = time_fits && fits(k, time);
    }
    // Time is faster if there are few lanes, or if steps are closer in memory than lanes.
    const bool prefers_time = lane.size < kLanes || time.stride[kFirstOutput] < lane.stride[kFirstOutput];
    in_time = lane_fits ? prefers_time && time_fits : prefers_time || time_fits;
    const bool must_be_runs = in_time && time.size < kMinStepsForRows && lane.size > 1;
    for (int k = 0; k < Here::kOperands; ++k) {
      copied[k] = bytes(k) != stored_bytes(k) || !fits(k, in_time ? time : lane) ||
          (must_be_runs && lane.stride[k] != time.size * time.stride[k]);
      copied_bytes += copied[k] ? bytes(k) : 0;
    }
    constexpr int64_t kBlockBytes = 1 << 18;
    block = std::max(2 * kLanes, kBlockBytes / std::max<int64_t>(1, copied_bytes * time.size));
    const bool may_be_runs = in_time && time.size <= kTile;
    const int64_t together = copied_bytes > 0 ? block : may_be_runs ? kLanes * sequences_in_run<T>(time.size) : 1;
    const int64_t least = !in_time ? kPieceSideBySide : may_be_runs ? std::max(kPieceOfRows, kStepsOfPiece / time.size) : kPieceOfRows;
    piece = (least + together - 1) / together * together;
  }

  // Whether a loop over this dimension can read the operand in place.
  static bool fits(int k, const Dim& inner) { return inner.stride[k] == 1 || (k < Here::kValue && inner.stride[k] == 0); }
  static bool is_flag(int k) { return k >= Here::kFlag && k < Here::kInputs; }
  static int64_t bytes(int k) { return is_flag(k) ? 1 : sizeof(T); }
  int64_t stored_bytes(int k) const { return k < Here::kValue || is_flag(k) || stored == Stored::kReal ? bytes(k) : 2; }

  // Copies an operand between its place and a block.
  void copy(int k, const void* from, Pitch in, void* to, Pitch out, int64_t rows, int64_t columns) const {
    if (is_flag(k)) return copy_block<uint8_t, uint8_t>(from, in, to, out, rows, columns);
    if constexpr (std::is_same_v<T, float>) {
      const bool is_output = k >= Here::kInputs;
      const bool is_half = bytes(k) != stored_bytes(k);
      if (is_half && stored == Stored::kFloat16)
        return (is_output ? copy_block<T, Float16> : copy_block<Float16, T>)(from, in, to, out, rows, columns);
      if (is_half) return (is_output ? copy_block<T, Bfloat16> : copy_block<Bfloat16, T>)(from, in, to, out, rows, columns);
    }
    copy_block<T, T>(from, in, to, out, rows, columns);
  }
};

// Scans all sequences along the lane dimension, with copies of the operands that the loops cannot read in place.
template <class Form, class T>
void scan_copies(const Plan<Form, T>& plan, void* const* data, const Dim& lane, const Dim& time) {
  using Here = Cursor<T, Form>;
  constexpr int64_t kAlign = 64;
  const int64_t most = std::min(lane.size, plan.block);
  const std::unique_ptr<char[]> memory(new char[(plan.copied_bytes * most * time.size) + Here::kOperands * kAlign]);
  const Pitch dense = {plan.in_time ? time.size : most, 1};
  void* block[kMaxOperands];
  Dim block_lane = lane, block_time = time;
  char* place = memory.get();
  for (int k = 0; k < Here::kOperands; ++k) {
    if (!plan.copied[k]) continue;
    block[k] = place;
    place += (plan.bytes(k) * most * time.size + kAlign - 1) / kAlign * kAlign;
    block_lane.stride[k] = plan.in_time ? dense.row : dense.column;
    block_time.stride[k] = plan.in_time ? dense.column : dense.row;
  }
  for (int64_t start = 0; start < lane.size; start += most) {
    block_lane.size = std::min(most, lane.size - start);
    const int64_t rows = plan.in_time ? block_lane.size : time.size, columns = plan.in_time ? time.size : block_lane.size;
    const auto place_of = [&](int k) { return static_cast<char*>(data[k]) + start * lane.stride[k] * plan.stored_bytes(k); };
    const auto pitch_of = [&](int k) {
      return plan.in_time ? Pitch{lane.stride[k], time.stride[k]} : Pitch{time.stride[k], lane.stride[k]};
    };
    for (int k = 0; k < Here::kOperands; ++k) {
      if (!plan.copied[k])
        block[k] = place_of(k);
      else if (k < Here::kInputs)
        plan.copy(k, place_of(k), pitch_of(k), block[k], dense, rows, columns);
    }
    scan_lanes<Form, T>(block, block_lane, block_time, plan.in_time);
    for (int k = Here::kInputs; k < Here::kOperands; ++k)
      if (plan.copied[k]) plan.copy(k, block[k], dense, place_of(k), pitch_of(k), rows, columns);
  }
}

// All data of a form, as pieces of neighbouring sequences. The last piece of the lane dimension may be longer than the others.
template <class Form, class T>
struct Pieces {
  using Here = Cursor<T, Form>;
  const Plan<Form, T>& plan;
  void* const* data;
  const Dim* batch;
  int batch_dims;
  const Dim &lane, &time;
  const int64_t in_lane = std::max<int64_t>(1, lane.size / plan.piece);  // pieces of the lane dimension
  std::atomic<bool> enough_memory{true};

  int64_t count() const {
    int64_t pieces = in_lane;
    for (int d = 0; d < batch_dims; ++d) pieces *= batch[d].size;
    return pieces;
  }

  // Scans the pieces [begin, end).
  void scan(int64_t begin, int64_t end) const {
    while (begin < end) {
      // Along time, the rounding of a step may depend on the piece. One by one, pieces give the same result for any number of threads.
      const int64_t first = begin % in_lane, last = plan.in_time ? first + 1 : std::min(in_lane, first + end - begin);
      Dim part = lane;
      part.size = (last == in_lane ? lane.size : last * plan.piece) - first * plan.piece;
      char* here[kMaxOperands];
      for (int k = 0; k < Here::kOperands; ++k)
        here[k] = static_cast<char*>(data[k]) + first * plan.piece * lane.stride[k] * plan.stored_bytes(k);
      int64_t outer = begin / in_lane;
      for (int d = batch_dims - 1; d >= 0; outer /= batch[d--].size) {
        const int64_t index = outer % batch[d].size;
        for (int k = 0; k < Here::kOperands; ++k) here[k] += index * batch[d].stride[k] * plan.stored_bytes(k);
      }
      void* operands[kMaxOperands];
      std::copy(here, here + Here::kOperands, operands);
      if (plan.copied_bytes > 0)
        scan_copies(plan, operands, part, time);
      else
        scan_lanes<Form, T>(operands, part, time, plan.in_time);
      begin += last - first;
    }
  }

  // As scan(), in a thread of the pool, where no exception must leave the function.
  static void scan_in_thread(int64_t begin, int64_t end, void* pieces) {
    auto* const self = static_cast<Pieces*>(pieces);
    try {
      self->scan(begin, end);
    } catch (const std::bad_alloc&) {
      self->enough_memory = false;
    }
  }

  // Scans all pieces. Several threads share them if each gets enough to do.
  void scan_all() {
    const int64_t pieces = count(), numbers = (lane.size * time.size * (Form::kValues + Form::kOutputs) + in_lane - 1) / in_lane;
    const int64_t grain = std::max<int64_t>(1, kMinNumbersPerThread / numbers);  // pieces for one thread
    const ParallelFor share = parallel_for;
    if (share == nullptr || pieces < 2 * grain) return scan(0, pieces);
    if (share(0, pieces, grain, scan_in_thread, this) != 0 || !enough_memory) throw std::bad_alloc();
  }
};

// Scans all data of a form. `given` has a pointer for every operand: coefficients, values, flags, outputs. Changes `batch`.
template <class Form, class T>
void scan(void* const* given, Dim* batch, int batch_dims, const Dim& time, Stored stored) {
  using Here = Cursor<T, Form>;
  constexpr int kFirstOutput = Here::kInputs;
  batch_dims = merge(batch, batch_dims, Here::kOperands);
  // The lane dimension is the batch dimension with the smallest stride in the first output.
  Dim lane{1, {}};
  if (batch_dims > 0) {
    Dim* closest = std::min_element(
        batch, batch + batch_dims, [](const Dim& a, const Dim& b) { return a.stride[kFirstOutput] < b.stride[kFirstOutput]; });
    lane = *closest;
    std::copy(closest + 1, batch + batch_dims, closest);
    --batch_dims;
  }
  const Plan<Form, T> plan(lane, time, stored);
  for (int k = kFirstOutput; k < Here::kOperands; ++k) {
    int64_t last = (time.size - 1) * time.stride[k] + (lane.size - 1) * lane.stride[k];
    for (int d = 0; d < batch_dims; ++d) last += (batch[d].size - 1) * batch[d].stride[k];
    expect_pages(given[k], last * plan.stored_bytes(k));
  }
  Pieces<Form, T>{plan, given, batch, batch_dims, lane, time}.scan_all();
}

}  // namespace
