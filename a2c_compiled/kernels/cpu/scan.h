// The scan, for every form alike. In reverse time y[t] = x[t] + decay[t] * y[t+1]; transposed, y[t] = x[t] + decay[t-1] * y[t-1].
// A zero decay cuts: what is beyond is not multiplied away but left out, so that NaN does not pass.
#pragma once

#include <algorithm>

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

constexpr int kMaxDims = 16, kMaxOperands = 20;
constexpr int64_t kLanes = 8;      // sequences, or parts of one, whose recurrences run side by side to hide their latency
constexpr int64_t kTile = 128;     // steps of each that fit the first-level cache, prologue and all
constexpr int64_t kWide = 1024;    // sequences that are walked side by side where they are neighbours in memory
constexpr int64_t kSplit = 64;     // from this many steps on a few sequences are scanned in parts

struct Dim {
  int64_t size;
  int64_t stride[kMaxOperands];  // in elements
};

// Where the operands lie: along the inner loop `step` apart, in time `time` apart.
template <class T, class Form>
struct Cursor {
  static constexpr int kInputs = Form::kCoefficients + Form::kValues + Form::kFlags, kOperands = kInputs + Form::kOutputs;
  static constexpr int kValue = Form::kCoefficients, kFlag = kValue + Form::kValues;

  const T* c[Form::kCoefficients + 1];
  const T* v[Form::kValues];
  const uint8_t* f[Form::kFlags + 1];
  T* out[Form::kOutputs];
  int64_t step[kOperands], time[kOperands];
  bool unit;  // every operand is one element apart along the inner loop, and the coefficients stay what they are

  Cursor(void* const* data, const Dim& inner, const Dim& time_dim) {
    for (int k = 0; k < Form::kCoefficients; ++k) c[k] = static_cast<const T*>(data[k]);
    for (int k = 0; k < Form::kValues; ++k) v[k] = static_cast<const T*>(data[kValue + k]);
    for (int k = 0; k < Form::kFlags; ++k) f[k] = static_cast<const uint8_t*>(data[kFlag + k]);
    for (int k = 0; k < Form::kOutputs; ++k) out[k] = static_cast<T*>(data[kInputs + k]);
    std::copy(inner.stride, inner.stride + kOperands, step);
    std::copy(time_dim.stride, time_dim.stride + kOperands, time);
    unit = true;
    for (int k = 0; k < kOperands; ++k) unit = unit && step[k] == (k < kValue ? 0 : 1);
  }

  void advance(const int64_t* stride, int64_t by) {
    for (int k = 0; k < Form::kCoefficients; ++k) c[k] += by * stride[k];
    for (int k = 0; k < Form::kValues; ++k) v[k] += by * stride[kValue + k];
    for (int k = 0; k < Form::kFlags; ++k) f[k] += by * stride[kFlag + k];
    for (int k = 0; k < Form::kOutputs; ++k) out[k] += by * stride[kInputs + k];
  }
};

// One step of the inner loop: nothing is read before it is asked for.
template <class T, class Form, bool kUnit>
struct Step {
  using Real = T;
  using Here = Cursor<T, Form>;
  const Here& at;
  int64_t i, later;  // place in the inner loop, and steps in time from there
  bool first, last;

  INLINE T c(int k) const { return at.c[k][(kUnit ? 0 : i * at.step[k]) + later * at.time[k]]; }
  INLINE T v(int k) const { return at.v[k][index(Here::kValue + k)]; }
  INLINE bool f(int k) const { return at.f[k][index(Here::kFlag + k)] != 0; }
  INLINE int64_t index(int operand) const { return i * (kUnit ? 1 : at.step[operand]) + later * at.time[operand]; }
  // Before the first and after the last step that step itself stands in.
  INLINE Step before() const { return {at, i, first ? 0 : -1, false, false}; }
  INLINE Step after() const { return {at, i, last ? 0 : 1, false, false}; }

  INLINE void finish(T y, T y_after) const {
    T results[Form::kOutputs];
    Form::epilogue(*this, y, y_after, results);
    for (int k = 0; k < Form::kOutputs; ++k) at.out[k][i * (kUnit ? 1 : at.step[Here::kInputs + k])] = results[k];
  }
};

// One link of the chain: from what comes in to this step's result and to what goes on from it.
template <bool kReverse, class T>
INLINE T follow(T x, T decay, T& carry) {
  if (kReverse) return carry = x + cut(decay, carry);
  const T y = x + carry;
  carry = cut(decay, y);
  return y;
}

// Sequences that are neighbours in memory: every step is a vector operation over them.
template <bool kUnit, class T, class Form>
void scan_side_by_side(Cursor<T, Form> cursor, int64_t sequences, int64_t steps) {
  constexpr int64_t kCount = kUnit ? kWide : 2 * kLanes;
  T carry[kCount];
  for (int64_t start = 0; start < sequences; start += kCount) {
    const int64_t count = std::min(kCount, sequences - start);
    std::fill(carry, carry + count, T(0));
    Cursor<T, Form> row = cursor;
    row.advance(row.step, start);
    if (Form::kReverse) row.advance(row.time, steps - 1);
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = Form::kReverse ? steps - 1 - i : i;
      const bool first = t == 0, last = t == steps - 1;
      INDEPENDENT_STEPS
      for (int64_t n = 0; n < count; ++n) {
        const Step<T, Form, kUnit> s{row, n, 0, first, last};
        const Link<T> link = Form::prologue(s);
        const T neighbour = carry[n];
        const T y = follow<Form::kReverse>(link.x, link.decay, carry[n]);
        s.finish(y, neighbour);
      }
      row.advance(row.time, Form::kReverse ? -1 : 1);
    }
  }
}

// A tile: up to kLanes pieces of sequences, prologue done, in the first-level cache.
template <class T>
struct Tile {
  alignas(64) T x[kLanes * kTile + 1], decay[kLanes * kTile], product[kLanes * kTile], carry[kLanes];
};

// `body(from, to, first, last)` over the steps of [from, to), those at the edges of the data by themselves.
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

template <class T, class Form>
NOINLINE void prologue(const Cursor<T, Form>& row, int64_t from, int64_t to, bool first, bool last, T* __restrict x, T* __restrict decay) {
  INDEPENDENT_STEPS
  for (int64_t t = from; t < to; ++t) {
    const Link<T> link = Form::prologue(Step<T, Form, true>{row, t, 0, first, last});
    x[t] = link.x;
    decay[t] = link.decay;
  }
}

template <class T, class Form>
NOINLINE void epilogue(const Cursor<T, Form>& row, int64_t from, int64_t to, bool first, bool last, const T* __restrict y) {
  INDEPENDENT_STEPS
  for (int64_t t = from; t < to; ++t)
    Step<T, Form, true>{row, t, 0, first, last}.finish(y[t], y[t + 1]);
}

template <class T, class Form>
void begin_steps(const Cursor<T, Form>& row, int64_t from, int64_t count, int64_t steps, T* x, T* decay) {
  over_steps<Form>(from, from + count, steps, [&](int64_t begin, int64_t end, bool first, bool last) {
    prologue(row, begin, end, first, last, x - from, decay - from);
  });
}

template <class T, class Form>
void end_steps(const Cursor<T, Form>& row, int64_t from, int64_t count, int64_t steps, const T* y) {
  over_steps<Form>(from, from + count, steps, [&](int64_t begin, int64_t end, bool first, bool last) {
    epilogue(row, begin, end, first, last, y - from);
  });
}

// The recurrences of a tile's lanes, `pitch` apart, over the steps of [from, to), carried on from `carry`. With `product` also
// what each step makes of that which comes into its lane.
template <bool kReverse, bool kProduct, int64_t kCount, class T>
INLINE void recur_step_by_step(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  for (int64_t i = from; i < to; ++i) {
    const int64_t t = kReverse ? from + to - 1 - i : i;
    for (int64_t n = 0; n < kCount; ++n) {
      const int64_t at = n * pitch + t;
      if (kProduct) {
        const T before = product[n];
        product[n] = cut(tile.decay[at], before);
        tile.product[at] = kReverse ? product[n] : before;
      }
      tile.x[at] = follow<kReverse>(tile.x[at], tile.decay[at], carry[n]);
    }
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_VECTORS
#endif
#endif

#if defined(HAS_VECTORS)
static_assert(kLanes == 8, "a vector holds a step of every lane");

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(8 * sizeof(T))));
};

// Rows to columns.
template <class V>
INLINE void transpose(V (&r)[8]) {
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    const V a = r[i], b = r[i + 1];
    r[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    r[i + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const int i = j / 2 * 4 + j % 2;
    const V a = r[i], b = r[i + 2];
    r[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const V a = r[i], b = r[i + 4];
    r[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

template <class V, class T>
INLINE void load_columns(V (&columns)[8], const T* rows, int64_t pitch) {
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) std::memcpy(&columns[n], rows + n * pitch, sizeof(V));
  transpose(columns);
}

template <class V, class T>
INLINE void store_columns(V (&columns)[8], T* rows, int64_t pitch) {
  transpose(columns);
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) std::memcpy(rows + n * pitch, &columns[n], sizeof(V));
}

// The same for all lanes and eight steps at a time, turned so that a step is a vector.
template <bool kReverse, bool kProduct, class T>
INLINE void recur_by_eight(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  using V = typename Vector<T>::type;
  V x[8], decay[8], carried, multiplied;
  std::memcpy(&carried, carry, sizeof(V));
  std::memcpy(&multiplied, product, sizeof(V));
  for (int64_t i = from; i < to; i += 8) {
    const int64_t t = kReverse ? from + to - 8 - i : i;
    load_columns(x, tile.x + t, pitch);
    load_columns(decay, tile.decay + t, pitch);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const int k = kReverse ? 7 - j : j;
      if (kReverse) {
        x[k] = carried = x[k] + decay[k] * (decay[k] == 0 ? V{} : carried);
      } else {
        x[k] = x[k] + carried;
        carried = decay[k] * (decay[k] == 0 ? V{} : x[k]);
      }
      if (kProduct) {
        const V before = multiplied;
        multiplied = decay[k] * (decay[k] == 0 ? V{} : before);
        decay[k] = kReverse ? multiplied : before;
      }
    }
    store_columns(x, tile.x + t, pitch);
    if (kProduct) store_columns(decay, tile.product + t, pitch);
  }
  std::memcpy(carry, &carried, sizeof(V));
  std::memcpy(product, &multiplied, sizeof(V));
}
#else
template <bool kReverse, bool kProduct, class T>
INLINE void recur_by_eight(Tile<T>& tile, int64_t pitch, int64_t from, int64_t to, T* carry, T* product) {
  recur_step_by_step<kReverse, kProduct, kLanes>(tile, pitch, from, to, carry, product);
}
#endif

// All of a tile's lanes; with kProduct the products over the lanes are left in place of the decays.
template <bool kReverse, bool kProduct, class T>
void recur(Tile<T>& tile, int64_t pitch, int64_t count) {
  T carry[kLanes], product[kLanes];
  std::copy(tile.carry, tile.carry + kLanes, carry);
  std::fill(product, product + kLanes, T(1));
  const int64_t rest = count % 8;
  if (kReverse) recur_step_by_step<kReverse, kProduct, kLanes>(tile, pitch, count - rest, count, carry, product);
  recur_by_eight<kReverse, kProduct>(tile, pitch, 0, count - rest, carry, product);
  if (!kReverse) recur_step_by_step<kReverse, kProduct, kLanes>(tile, pitch, count - rest, count, carry, product);
  std::copy(carry, carry + kLanes, tile.carry);
  if (kProduct) std::copy(product, product + kLanes, tile.decay);
}

// Whether whole sequences lie end to end and fit a tile: all their steps are then one run, for forms that look at no other step.
template <class T, class Form>
bool are_one_run(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t steps) {
  bool one = !Form::kFirst && !Form::kLast && steps <= kTile;
  for (int k = 0; k < Cursor<T, Form>::kOperands; ++k) one = one && lane_stride[k] == steps * cursor.step[k];
  return one;
}

// Sequences one next to the other in time: kLanes of them at once, a tile of steps after the other.
template <class T, class Form>
void scan_rows(const Cursor<T, Form>& cursor, const int64_t* lane_stride, int64_t lanes, int64_t steps) {
  Tile<T> tile;
  std::fill(tile.carry, tile.carry + kLanes, T(0));
  if (lanes < kLanes) {  // what is computed in the empty lanes is thrown away, but is not to be garbage
    std::fill(tile.x, tile.x + kLanes * kTile, T(0));
    std::fill(tile.decay, tile.decay + kLanes * kTile, T(0));
  }
  if (are_one_run(cursor, lane_stride, steps)) {
    prologue(cursor, 0, lanes * steps, false, false, tile.x, tile.decay);
    recur<Form::kReverse, false>(tile, steps, steps);
    return epilogue(cursor, 0, lanes * steps, false, false, tile.x);
  }
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
      const T following = y[count];  // the next lane's first, where this tile is full
      y[count] = carried[n];
      end_steps(row, from, count, steps, y);
      y[count] = following;
    }
  }
}

// One long sequence: kLanes parts of it at once, then what comes into each part is added to it.
template <class T, class Form>
void scan_parts(const Cursor<T, Form>& row, int64_t steps) {
  Tile<T> tile;
  T carry(0);
  for (int64_t done = 0; done < steps;) {
    const int64_t part = std::min(kTile, (steps - done) / kLanes);
    const int64_t count = part > 0 ? part * kLanes : steps - done, from = Form::kReverse ? steps - done - count : done;
    const T carried = carry;
    begin_steps(row, from, count, steps, tile.x, tile.decay);
    if (part == 0) {
      recur_step_by_step<Form::kReverse, false, 1>(tile, count, 0, count, &carry, &carry);
    } else {
      std::fill(tile.carry, tile.carry + kLanes, T(0));
      recur<Form::kReverse, true>(tile, part, part);
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t n = Form::kReverse ? kLanes - 1 - i : i;
        T* x = tile.x + n * part;
        const T* product = tile.product + n * part;
        const T entering = carry;
        carry = tile.carry[n];
        if (entering == T(0)) continue;  // of nothing comes nothing, though the product may have overflowed
        for (int64_t t = 0; t < part; ++t) x[t] += cut(product[t], entering);
        carry += cut(tile.decay[n], entering);
      }
    }
    tile.x[count] = carried;
    end_steps(row, from, count, steps, tile.x);
    done += count;
  }
}

template <class T, class Form>
void scan_in_time(const Cursor<T, Form>& cursor, const Dim& lane, int64_t steps) {
  const bool in_parts = lane.size < kLanes && steps >= kSplit;
  Cursor<T, Form> row = cursor;
  for (int64_t n = 0; n < lane.size; n += in_parts ? 1 : kLanes, row.advance(lane.stride, in_parts ? 1 : kLanes)) {
    if (in_parts)
      scan_parts(row, steps);
    else
      scan_rows(row, lane.stride, std::min(kLanes, lane.size - n), steps);
  }
}

// Batch dimensions without those of size 1, and with those merged that are one in memory for all operands.
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

// Large results come as new pages, at a fault and a zeroing each: more of the time than the scan. Huge pages are 512 times fewer.
template <class T>
void expect_pages(T* data, const Dim* batch, int batch_dims, const Dim& time, int operand) {
#if defined(__linux__)
  constexpr int64_t kHugePage = 1 << 21;
  int64_t last = (time.size - 1) * time.stride[operand];
  for (int d = 0; d < batch_dims; ++d) last += (batch[d].size - 1) * batch[d].stride[operand];
  if (last * int64_t(sizeof(T)) < kHugePage / 2) return;
  // Outwards to whole pages: it is only advice, also for what else lies there.
  const int64_t begin = reinterpret_cast<int64_t>(data) / kHugePage * kHugePage;
  const int64_t end = (reinterpret_cast<int64_t>(data + last) / kHugePage + 1) * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <class Form, class T>
void scan(void* const* data, Dim* batch, int batch_dims, const Dim& time) {
  using Here = Cursor<T, Form>;
  constexpr int kFirstOutput = Here::kInputs;
  batch_dims = merge(batch, batch_dims, Here::kOperands);
  for (int k = kFirstOutput; k < Here::kOperands; ++k) expect_pages(static_cast<T*>(data[k]), batch, batch_dims, time, k);
  // The lanes: the dimension whose neighbours lie closest in the output.
  Dim lane{1, {}};
  if (batch_dims > 0) {
    Dim* closest = std::min_element(
        batch, batch + batch_dims, [](const Dim& a, const Dim& b) { return a.stride[kFirstOutput] < b.stride[kFirstOutput]; });
    lane = *closest;
    std::copy(closest + 1, batch + batch_dims, closest);
    --batch_dims;
  }
  const bool rows = lane.size < kLanes || time.stride[kFirstOutput] < lane.stride[kFirstOutput];
  Here cursor(data, time, time);
  const bool in_time = rows && cursor.unit;
  if (!in_time) cursor = Here(data, lane, time);
  int64_t index[kMaxDims] = {};
  for (;;) {
    if (in_time)
      scan_in_time(cursor, lane, time.size);
    else if (cursor.unit)
      scan_side_by_side<true>(cursor, lane.size, time.size);
    else
      scan_side_by_side<false>(cursor, lane.size, time.size);
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
