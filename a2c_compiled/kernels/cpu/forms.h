// The forms: what a step puts into the scan (prologue) and what it makes of the scan's result (epilogue).
// Their operands, in order, are those of kernels/scan_forms.py.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#else
#define INLINE inline
#define NOINLINE
#endif

namespace {  // internal linkage: one source file includes this

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

// A form says its name, how many operands it has, whether it runs in reverse time, whether it asks for the first step or the step
// before, for the last or the step after, and what one step does. A step gives its coefficients c(), values v() and flags f().

struct LinearScan {
  static constexpr const char* kName = "linear_scan";
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
  static constexpr const char* kName = "linear_scan_transposed";
  static constexpr bool kReverse = false;
};

struct Reward2Go {
  static constexpr const char* kName = "reward2go";
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
  static constexpr const char* kName = "reward2go_backward";
  static constexpr bool kReverse = false;
};

enum { kDone, kTerminated };
enum { kGamma, kLmbda };

struct Gae {
  static constexpr const char* kName = "gae";
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
  static constexpr const char* kName = "gae_backward";
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
  static constexpr const char* kName = "td_lambda";
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
  static constexpr const char* kName = "td_lambda_backward";
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
  static constexpr const char* kName = "vtrace";
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
  static constexpr const char* kName = "vtrace_backward";
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

template <class... Forms>
struct List {};

// Every form; Python calls each by its place here.
using AllForms = List<LinearScan, LinearScanTransposed, Reward2Go, Reward2GoBackward, Gae, GaeBackward, TdLambda, TdLambdaBackward,
                      VTrace, VTraceBackward>;

}  // namespace
