// The fused scans on the CPU. In reverse time y[t] = x[t] + decay[t] * y[t+1]; transposed, y[t] = x[t] + decay[t-1] * y[t-1].
// A zero decay cuts: what is beyond is not multiplied away but left out, so that NaN does not pass.
//
// Plain C++ behind two Python functions: no torch headers, so that it builds in seconds and works with every version of torch.
// The caller of `run` has checked everything: dtypes, shapes, devices. `call` checks, and leaves alone whatever is not plain.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// The module's name: the same source is built for several instruction sets.
#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define INIT_(name) PyInit_##name
#define INIT(name) INIT_(name)

namespace {

#if defined(__clang__)
#define INDEPENDENT_STEPS _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT_STEPS _Pragma("GCC ivdep")
#else
#define INDEPENDENT_STEPS
#endif
#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#else
#define INLINE inline
#define NOINLINE
#endif

// ---------------------------------------------------------------------------------------------------------------------------
// The forms: what a step puts into the scan (prologue) and what it makes of the scan's result (epilogue).

template <class T>
struct Link {
  T x, decay;
};

// Functions, not conditional expressions in place: their arguments are computed in any case, so that loops vectorise.
template <class T>
INLINE T pick(bool condition, T yes, T no) {
  return condition ? yes : no;
}

template <class T>
INLINE T unless(bool condition, T value) {
  return pick(condition, T(0), value);
}

// `a * b`, but zero where `a` is zero.
template <class T>
INLINE T cut(T a, T b) {
  return unless(a == T(0), a * b);
}

// 1/0!, 1/1!, ...: the Taylor coefficients of exp.
struct Exponential {
  double term[14] = {1};
  constexpr Exponential() {
    for (int i = 1; i < 14; ++i) term[i] = term[i - 1] / i;
  }
};
constexpr Exponential kExponential;

// exp by the nearest power of two and a polynomial for the rest, to the last bit but one. Unlike std::exp it vectorises.
template <class T>
INLINE T exponential(T x) {
  constexpr bool kSingle = sizeof(T) == 4;
  using Bits = std::conditional_t<kSingle, int32_t, int64_t>;
  constexpr int kMantissa = kSingle ? 23 : 52, kBias = kSingle ? 127 : 1023, kDegree = kSingle ? 7 : 13;
  constexpr T kLowest = kSingle ? T(-87) : T(-708);                           // below, results are about denormal: zero here
  constexpr T kRound = kSingle ? T(12582912) : T(6755399441055744);           // 1.5 * 2^mantissa: added, it rounds
  constexpr T kLog2High = kSingle ? T(0.693359375) : T(0.69314718036912382);  // log 2 in two parts: k times the first is exact
  constexpr T kLog2Low = kSingle ? T(-2.12194440e-4) : T(1.9082149292705877e-10);
  const T clamped = pick(x < kLowest, kLowest, x);
  const T shifted = clamped * T(1.4426950408889634) + kRound;
  const T k = shifted - kRound;
  const T rest = (clamped - k * kLog2High) - k * kLog2Low;
  T sum = T(kExponential.term[kDegree]);
  for (int i = kDegree - 1; i >= 0; --i) sum = T(kExponential.term[i]) + sum * rest;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);  // its low bits are k
  bits = Bits(std::make_unsigned_t<Bits>(bits + kBias) << kMantissa);
  T power;
  std::memcpy(&power, &bits, sizeof power);
  return unless(x < kLowest, sum * power);
}

// A form says how many operands it has, whether it runs in reverse time, whether it asks for the first step or the step before, for
// the last or the step after, and what one step does. A step gives its coefficients c(), values v() and flags f().

struct LinearScan {
  static constexpr int kCoefficients = 0, kValues = 2, kFlags = 0, kOutputs = 1;
  static constexpr bool kReverse = true, kFirst = false, kLast = false;
  enum { kX, kDecay };

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(kX), s.v(kDecay)};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S&, T y, T, T* out) {
    out[0] = y;
  }
};

struct LinearScanTransposed : LinearScan {
  static constexpr bool kReverse = false;
};

struct Reward2Go {
  static constexpr int kCoefficients = 1, kValues = 1, kFlags = 1, kOutputs = 1;
  static constexpr bool kReverse = true, kFirst = false, kLast = false;

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(0), unless(s.f(0), s.c(0))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S&, T y, T, T* out) {
    out[0] = y;
  }
};

struct Reward2GoBackward : Reward2Go {
  static constexpr bool kReverse = false;
};

enum { kDone, kTerminated };
enum { kGamma, kLmbda };

struct Gae {
  static constexpr int kCoefficients = 2, kValues = 3, kFlags = 2, kOutputs = 2;
  static constexpr bool kReverse = true, kFirst = false, kLast = false;
  enum { kValue, kNextValue, kReward };

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * s.v(kNextValue));
    return {s.v(kReward) + bootstrap - s.v(kValue), unless(s.f(kDone), s.c(kGamma) * s.c(kLmbda))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, T advantage, T, T* out) {
    out[0] = advantage;
    out[1] = advantage + s.v(kValue);
  }
};

struct GaeBackward {
  static constexpr int kCoefficients = 2, kValues = 2, kFlags = 2, kOutputs = 3;
  static constexpr bool kReverse = false, kFirst = false, kLast = false;
  enum { kGradAdvantage, kGradTarget };

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(kGradAdvantage) + s.v(kGradTarget), unless(s.f(kDone), s.c(kGamma) * s.c(kLmbda))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, T g, T, T* out) {
    out[0] = s.v(kGradTarget) - g;
    out[1] = unless(s.f(kTerminated), s.c(kGamma) * g);
    out[2] = g;
  }
};

struct TdLambda {
  static constexpr int kCoefficients = 2, kValues = 2, kFlags = 2, kOutputs = 1;
  static constexpr bool kReverse = true, kFirst = false, kLast = true;
  enum { kNextValue, kReward };

  template <class S, class T = typename S::Real>
  static INLINE T trace(const S& s) {
    return unless(s.f(kDone) | s.last, s.c(kLmbda));
  }
  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * s.v(kNextValue));
    return {s.v(kReward) + bootstrap * (T(1) - trace(s)), cut(trace(s), s.c(kGamma))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S&, T y, T, T* out) {
    out[0] = y;
  }
};

struct TdLambdaBackward {
  static constexpr int kCoefficients = 2, kValues = 1, kFlags = 2, kOutputs = 2;
  static constexpr bool kReverse = false, kFirst = false, kLast = true;

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(0), cut(TdLambda::trace(s), s.c(kGamma))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, T g, T, T* out) {
    out[0] = unless(s.f(kTerminated), s.c(kGamma) * (T(1) - TdLambda::trace(s)) * g);
    out[1] = g;
  }
};

struct VTrace {
  static constexpr int kCoefficients = 5, kValues = 5, kFlags = 2, kOutputs = 2;
  static constexpr bool kReverse = true, kFirst = false, kLast = true;
  enum { kRhoThresh = 1, kCThresh, kPgRhoThresh, kLmbda };
  enum { kLogPi, kLogMu, kValue, kNextValue, kReward };

  // Beyond e^80 the ratio would overflow in float32.
  template <class T>
  static INLINE T ratio(T log_pi, T log_mu) {
    const T log_ratio = log_pi - log_mu;
    return exponential(pick(log_ratio > T(80), T(80), log_ratio));
  }
  template <class T>
  static INLINE T clipped(T ratio, T thresh) {
    return pick(ratio > thresh, thresh, ratio);
  }
  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T r = ratio(s.v(kLogPi), s.v(kLogMu));
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * s.v(kNextValue));
    const T delta = clipped(r, s.c(kRhoThresh)) * (s.v(kReward) + bootstrap - s.v(kValue));
    return {delta, unless(s.f(kDone), s.c(kGamma) * s.c(kLmbda) * clipped(r, s.c(kCThresh)))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, T y, T y_after, T* out) {
    const T rho = clipped(ratio(s.v(kLogPi), s.v(kLogMu)), s.c(kPgRhoThresh));
    const T mixed = s.after().v(kValue) + s.c(kLmbda) * y_after;
    const T next_target = pick(s.f(kDone) | s.last, s.v(kNextValue), mixed);
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * next_target);
    out[0] = rho * (s.v(kReward) + bootstrap - s.v(kValue));
    out[1] = s.v(kValue) + y;
  }
};

struct VTraceBackward {
  static constexpr int kCoefficients = 5, kValues = 8, kFlags = 2, kOutputs = 5;
  static constexpr bool kReverse = false, kFirst = true, kLast = true;
  enum { kGradAdvantage, kGradTarget, kLogPi, kLogMu, kValue, kNextValue, kReward, kTarget };

  // What the advantage of the step before sends back to this step's value and, times lambda, to its correction.
  template <class S, class T = typename S::Real>
  static INLINE T sent(const S& s) {
    const S before = s.before();
    const T rho = VTrace::clipped(VTrace::ratio(before.v(kLogPi), before.v(kLogMu)), before.c(VTrace::kPgRhoThresh));
    return unless(before.f(kDone) | before.f(kTerminated) | s.first, before.v(kGradAdvantage) * rho * before.c(kGamma));
  }
  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T c = VTrace::clipped(VTrace::ratio(s.v(kLogPi), s.v(kLogMu)), s.c(VTrace::kCThresh));
    const T lmbda = s.c(VTrace::kLmbda);
    return {s.v(kGradTarget) + s.before().c(VTrace::kLmbda) * sent(s), unless(s.f(kDone), s.c(kGamma) * lmbda * c)};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, T g, T, T* out) {
    const T gamma = s.c(kGamma), lmbda = s.c(VTrace::kLmbda), log_ratio = s.v(kLogPi) - s.v(kLogMu);
    const T ratio = VTrace::ratio(s.v(kLogPi), s.v(kLogMu));
    const T rho = VTrace::clipped(ratio, s.c(VTrace::kRhoThresh)), pg_rho = VTrace::clipped(ratio, s.c(VTrace::kPgRhoThresh));
    const bool ends = s.f(kDone) | s.last;
    const T next_value = unless(s.f(kTerminated), s.v(kNextValue));
    const T correction = s.after().v(kTarget) - s.after().v(kValue), mixed = s.after().v(kValue) + lmbda * correction;
    const T next_target = unless(s.f(kTerminated), pick(ends, s.v(kNextValue), mixed));
    const T grad_rho = g * (s.v(kReward) + gamma * next_value - s.v(kValue));
    const T grad_pg_rho = s.v(kGradAdvantage) * (s.v(kReward) + gamma * next_target - s.v(kValue));
    const T grad_c = unless(ends, g * gamma * lmbda * correction);
    const T grad_ratio = unless(ratio > s.c(VTrace::kRhoThresh), grad_rho) +
        unless(ratio > s.c(VTrace::kPgRhoThresh), grad_pg_rho) + unless(ratio > s.c(VTrace::kCThresh), grad_c);
    const T grad_log_pi = unless(log_ratio > T(80), grad_ratio * ratio);
    const T grad_own = pg_rho * s.v(kGradAdvantage), grad_reward = grad_own + rho * g;
    out[0] = grad_log_pi;
    out[1] = -grad_log_pi;
    out[2] = s.v(kGradTarget) + sent(s) - grad_reward;
    out[3] = unless(s.f(kTerminated), gamma * (rho * g + unless(!ends, grad_own)));
    out[4] = grad_reward;
  }
};

// ---------------------------------------------------------------------------------------------------------------------------
// The scan, for every form alike.

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

// ---------------------------------------------------------------------------------------------------------------------------
// The Python functions.

using Scan = void (*)(void* const*, Dim*, int, const Dim&);

struct Entry {
  const char* name;
  int coefficients, values, flags, operands;
  Scan single, wide;
};

template <class Form>
constexpr Entry entry(const char* name) {
  return {name,         Form::kCoefficients, Form::kValues, Form::kFlags, Cursor<float, Form>::kOperands, scan<Form, float>,
          scan<Form, double>};
}

constexpr Entry kForms[] = {
    entry<LinearScan>("linear_scan"),
    entry<LinearScanTransposed>("linear_scan_transposed"),
    entry<Reward2Go>("reward2go"),
    entry<Reward2GoBackward>("reward2go_backward"),
    entry<Gae>("gae"),
    entry<GaeBackward>("gae_backward"),
    entry<TdLambda>("td_lambda"),
    entry<TdLambdaBackward>("td_lambda_backward"),
    entry<VTrace>("vtrace"),
    entry<VTraceBackward>("vtrace_backward"),
};

PyObject* fail(const char* message) {
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, message);
  return nullptr;
}

// A reference of one's own, given back at the end of the scope.
struct Result {
  PyObject* object;
  explicit Result(PyObject* object) : object(object) {}
  Result(const Result&) = delete;
  ~Result() { Py_XDECREF(object); }
};

// forms() -> the names, in the order of their numbers.
PyObject* forms(PyObject*, PyObject*) {
  const Result names(PyList_New(0));
  for (const Entry& form : kForms) {
    const Result name(names.object ? PyUnicode_FromString(form.name) : nullptr);
    if (name.object == nullptr || PyList_Append(names.object, name.object) < 0) return nullptr;
  }
  Py_INCREF(names.object);
  return names.object;
}

bool read(PyObject* tuple, int64_t* values, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) values[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
  return !PyErr_Occurred();
}

// run(form, is_double, dim, tensor, ...): inputs and outputs in the order of the form. Zero-dimensional ones are as if expanded.
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
  const Result shape(PyObject_GetAttrString(args[nargs - 1], "shape"));
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
    const Result pointer(PyObject_CallMethodObjArgs(args[kFirstOperand + k], kDataPtr, nullptr));
    if (pointer.object == nullptr) return nullptr;
    const Result stride(PyObject_CallMethodObjArgs(args[kFirstOperand + k], kStride, nullptr));
    if (stride.object == nullptr) return nullptr;
    data[k] = PyLong_AsVoidPtr(pointer.object);
    if (data[k] == nullptr && !empty) return fail("run: a tensor without memory");
    std::fill(strides, strides + dims, 0);
    const Py_ssize_t given = PyTuple_Size(stride.object);
    if (given != dims && given != 0) return fail("run: bad number of dimensions");
    if (!read(stride.object, strides, given)) return nullptr;
    for (Py_ssize_t d = 0, b = 0; d < dims; ++d) (d == dim ? time : batch[b++]).stride[k] = strides[d];
  }
  const bool is_double = PyObject_IsTrue(args[1]);
  if (PyErr_Occurred()) return nullptr;
  if (!empty) {
    Py_BEGIN_ALLOW_THREADS;
    (is_double ? form.wide : form.single)(data, batch, int(dims) - 1, time);
    Py_END_ALLOW_THREADS;
  }
  Py_RETURN_NONE;
}

// DLPack's interface in C, as far as it is used: it stands still where torch's own does not, and reads a tensor in nanoseconds.
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
  enum { kCpu = 1, kFloat = 2, kBool = 6 };
  uint32_t major, minor;
  void *previous, *allocate, *from_object, *to_object;
  int (*read)(void* object, DLTensor* tensor);
};

// torch, as far as `call` has to know it. Never given back: at exit there is no interpreter to take it.
struct Torch {
  PyObject* const module = PyImport_ImportModule("torch");
  PyObject* const tensor = get(module, "Tensor");
  PyObject* const float32 = get(module, "float32");
  PyObject* const float64 = get(module, "float64");
  PyObject* const empty_like = get(module, "empty_like");
  PyObject* const is_grad_enabled = get(module, "is_grad_enabled");
  PyObject* const is_neg = get(tensor, "is_neg");
  PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  const DLPack* const dlpack = interface(get(tensor, "__dlpack_c_exchange_api__"));

  static PyObject* get(PyObject* object, const char* name) { return object ? PyObject_GetAttrString(object, name) : nullptr; }

  static const DLPack* interface(PyObject* capsule) {
    auto found = capsule ? static_cast<const DLPack*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api")) : nullptr;
    PyErr_Clear();  // older versions have none
    return found != nullptr && found->major == DLPack::kMajor ? found : nullptr;
  }
};
const Torch& torch() {
  static const Torch& once = *new Torch;
  return once;
}

// The operands of a call. What says no does not say why: the error is left to whoever takes the call over.
struct Operands {
  const Entry& form;
  PyObject* const* inputs;
  const int first_flag, num_inputs;
  void* data[kMaxOperands];
  Dim time, batch[kMaxDims];
  DLTensor like;  // the last value, whose shape and dtype all share
  Py_ssize_t dim;
  int64_t numel;
  double numbers[kMaxOperands];
  PyObject* layout = nullptr;  // a value that is laid out as the flags are

  Operands(const Entry& form, PyObject* const* inputs)
      : form(form), inputs(inputs), first_flag(form.coefficients + form.values), num_inputs(first_flag + form.flags) {}

  bool take(PyObject* time_dim, int64_t most_elements) {
    if (torch().dlpack == nullptr || !PyLong_CheckExact(time_dim) || !read(inputs[first_flag - 1], &like)) return false;
    if (like.code != DLPack::kFloat || (like.bits != 32 && like.bits != 64) || like.ndim > kMaxDims) return false;
    dim = PyLong_AsSsize_t(time_dim);
    dim += dim < 0 ? like.ndim : 0;
    if (dim < 0 || dim >= like.ndim) return false;
    numel = 1;
    for (int d = 0, b = 0; d < like.ndim; ++d) numel *= (d == dim ? time : batch[b++]).size = like.shape[d];
    if (numel == 0 || numel > most_elements) return false;
    DLTensor flags = like;
    if (form.flags > 0 && !read(inputs[first_flag], &flags)) return false;
    for (int k = 0; k < num_inputs; ++k)
      if (!(k < form.coefficients && number(k)) && !input(k, flags)) return false;
    return true;
  }

  // Of whatever is no subclass, and so behaves as a tensor does.
  static bool read(PyObject* object, DLTensor* tensor) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != torch().tensor) return false;
    if (torch().dlpack->read(object, tensor) != 0 || tensor->device_type != DLPack::kCpu) return false;
    return tensor->data != nullptr && tensor->byte_offset == 0;
  }

  bool number(int k) {
    if (!PyFloat_Check(inputs[k]) && !PyLong_Check(inputs[k])) return false;
    numbers[k] = PyFloat_AsDouble(inputs[k]);
    if (like.bits == 32) {
      const float single = float(numbers[k]);
      std::memcpy(&numbers[k], &single, sizeof single);
    }
    place(k, &numbers[k], nullptr);
    return true;
  }

  bool input(int k, const DLTensor& flags) {
    DLTensor tensor;
    const bool is_flag = k >= first_flag;
    if (!read(inputs[k], &tensor) || tensor.code != (is_flag ? DLPack::kBool : DLPack::kFloat)) return false;
    if (tensor.bits != (is_flag ? 8 : like.bits) || tensor.lanes != 1) return false;
    const bool scalar = k < form.coefficients && tensor.ndim == 0;
    if (!scalar && (tensor.ndim != like.ndim || !std::equal(like.shape, like.shape + like.ndim, tensor.shape))) return false;
    if (!is_flag && !asks_for_nothing(inputs[k])) return false;
    if (k >= form.coefficients && !is_flag && std::equal(flags.strides, flags.strides + like.ndim, tensor.strides)) layout = inputs[k];
    place(k, tensor.data, scalar ? nullptr : tensor.strides);
    return true;
  }

  // Neither for a gradient, nor to be negated as it is read.
  static bool asks_for_nothing(PyObject* tensor) {
    const Result wanted(PyObject_GetAttr(tensor, torch().requires_grad));
    const Result negated(PyObject_CallFunctionObjArgs(torch().is_neg, tensor, nullptr));
    if (wanted.object == Py_False) return negated.object == Py_False;
    const Result enabled(PyObject_CallFunctionObjArgs(torch().is_grad_enabled, nullptr));
    return enabled.object == Py_False && negated.object == Py_False;
  }

  void place(int k, void* where, const int64_t* strides) {
    data[k] = where;
    for (int d = 0, b = 0; d < like.ndim; ++d) (d == dim ? time : batch[b++]).stride[k] = strides ? strides[d] : 0;
  }

  // The outputs, laid out as the flags are, which neither a gradient nor a broadcast value distorts.
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

  PyObject* new_output() const {
    if (layout != nullptr) return PyObject_CallFunctionObjArgs(torch().empty_like, layout, nullptr);
    const Result arguments(PyTuple_Pack(1, inputs[first_flag])), options(PyDict_New());
    if (arguments.object == nullptr || options.object == nullptr) return nullptr;
    if (PyDict_SetItemString(options.object, "dtype", like.bits == 32 ? torch().float32 : torch().float64) < 0) return nullptr;
    return PyObject_Call(torch().empty_like, arguments.object, options.object);
  }

  void scan() {
    constexpr int64_t kQuick = 16384;  // less takes no longer than to give up the interpreter and have it back
    PyThreadState* const state = numel > kQuick ? PyEval_SaveThread() : nullptr;
    (like.bits == 32 ? form.single : form.wide)(data, batch, like.ndim - 1, time);
    if (state != nullptr) PyEval_RestoreThread(state);
  }
};

// call(form, most_elements, dim, coefficient or value or flag, ...): a tuple of the outputs, or None unless all is as the kernel takes
// it without more ado: numbers, and plain tensors in host memory, of one shape and dtype, none of which asks for a gradient.
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr Py_ssize_t kFirstInput = 3;
  const long number = nargs > kFirstInput ? PyLong_AsLong(args[0]) : -1;
  if (number < 0 || number >= long(sizeof kForms / sizeof *kForms)) return fail("call: bad form");
  const Entry& form = kForms[number];
  Operands operands(form, args + kFirstInput);
  if (nargs != kFirstInput + operands.num_inputs) return fail("call: bad number of operands");
  const Result outputs(PyTuple_New(form.operands - operands.num_inputs));
  if (outputs.object == nullptr) return nullptr;
  if (!operands.take(args[2], PyLong_AsLongLong(args[1])) || !operands.make_outputs(outputs.object) || PyErr_Occurred()) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  operands.scan();
  Py_INCREF(outputs.object);
  return outputs.object;
}

PyMethodDef methods[] = {
    {"forms", forms, METH_NOARGS, nullptr},
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(run)), METH_FASTCALL, nullptr},
    {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(call)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, TEXT(MODULE), nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC INIT(MODULE)() { return PyModule_Create(&module); }
