// The forms: recurrences along time with their inputs and outputs. prologue() computes x[t] and decay[t] from the inputs of a
// step. The scan in scan.h computes y[t]. epilogue() computes the outputs of the step from y[t].
//
//   reverse form:     y[t] = x[t] + decay[t] * y[t+1],     with y[T] = 0
//   transposed form:  y[t] = x[t] + decay[t-1] * y[t-1],   with y[-1] = 0
//
// kernels/scan_forms.py defines the operands, their order and the notation. In a backward form y is g, the gradient of the forward
// form's x.
#pragma once

#include "vectors.h"

namespace {  // internal linkage: one source file includes this

// The coefficients of one step of the recurrence, x[t] and decay[t], and numbers that the prologue passes to the epilogue of the same step.
template <class T>
struct Link {
  T x, decay, kept[2] = {};
};

// The members of a form:
//   kName                                      the form's name in kernels/scan_forms.py
//   kCoefficients, kValues, kFlags, kOutputs   the numbers of the form's operands
//   kReverse                                   whether the form is a reverse form
//   kFirst                                     whether the form reads Step::first or Step::before()
//   kLast                                      whether the form reads Step::last or Step::after()
//   kKept                                      how many numbers the prologue passes to the epilogue
//   prologue(step)                             returns {x[t], decay[t], {kept[t]...}}
//   epilogue(step, kept, y, y_after, out)      writes the outputs at t; y_after is y[t+1], valid in reverse forms only
// A Step reads coefficient, value and flag number k at t by c(k), v(k) and f(k). It stands for one step, or for several in a vector: Real
// is one number or a Pack of them.

// y[t] = x[t] + decay[t] * y[t+1]
struct LinearScan {
  static constexpr const char* kName = "linear_scan";
  static constexpr int kCoefficients = 0, kValues = 2, kFlags = 0, kOutputs = 1, kKept = 0;
  static constexpr bool kReverse = true, kFirst = false, kLast = false;
  enum { kX, kDecay };

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(kX), s.v(kDecay)};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S&, const T*, T y, T, T* out) {
    out[0] = y;
  }
};

// y[t] = x[t] + decay[t-1] * y[t-1]
struct LinearScanTransposed : LinearScan {
  static constexpr const char* kName = "linear_scan_transposed";
  static constexpr bool kReverse = false;
};

// decay[t] = 0 if done[t] else gamma[t]
// returns[t] = reward[t] + decay[t] * returns[t+1]
struct Reward2Go {
  static constexpr const char* kName = "reward2go";
  static constexpr int kCoefficients = 1, kValues = 1, kFlags = 1, kOutputs = 1, kKept = 0;
  static constexpr bool kReverse = true, kFirst = false, kLast = false;

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(0), unless(s.f(0), s.c(0))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S&, const T*, T y, T, T* out) {
    out[0] = y;
  }
};

// grad_reward[t] = grad_returns[t] + decay[t-1] * grad_reward[t-1]
struct Reward2GoBackward : Reward2Go {
  static constexpr const char* kName = "reward2go_backward";
  static constexpr bool kReverse = false;
};

enum { kDone, kTerminated };
enum { kGamma, kLmbda };

// decay[t] = 0 if done[t] else gamma[t] * lmbda[t]
// trace[t] = x[t] + decay[t-1] * trace[t-1]
struct EligibilityTrace : Reward2GoBackward {
  static constexpr const char* kName = "eligibility_trace";
  static constexpr int kCoefficients = 2;

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(0), unless(s.f(kDone), s.c(kGamma) * s.c(kLmbda))};
  }
};

// grad_x[t] = grad_trace[t] + decay[t] * grad_x[t+1]
struct EligibilityTraceBackward : EligibilityTrace {
  static constexpr const char* kName = "eligibility_trace_backward";
  static constexpr bool kReverse = true;
};

// Returns where the trace ends. A terminated step that is not marked as done ends it too.
template <class S>
INLINE auto ends(const S& s) {
  return s.f(kDone) | s.f(kTerminated);
}

// delta[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) - state_value[t]
// decay[t] = 0 if ends[t] else gamma[t] * lmbda[t]
// advantage[t] = delta[t] + decay[t] * advantage[t+1]
// value_target[t] = advantage[t] + state_value[t]
struct Gae {
  static constexpr const char* kName = "gae";
  static constexpr int kCoefficients = 2, kValues = 3, kFlags = 2, kOutputs = 2, kKept = 0;
  static constexpr bool kReverse = true, kFirst = false, kLast = false;
  enum { kValue, kNextValue, kReward };

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * s.v(kNextValue));
    return {s.v(kReward) + bootstrap - s.v(kValue), unless(ends(s), s.c(kGamma) * s.c(kLmbda))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, const T*, T advantage, T, T* out) {
    out[0] = advantage;
    out[1] = advantage + s.v(kValue);
  }
};

// g[t] = grad_advantage[t] + grad_value_target[t] + decay[t-1] * g[t-1]: both outputs contain advantage[t]; g is the gradient of delta
// grad_state_value[t] = grad_value_target[t] - g[t]: value_target contains +state_value, delta contains -state_value
// grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * g[t]
// grad_reward[t] = g[t]
struct GaeBackward {
  static constexpr const char* kName = "gae_backward";
  static constexpr int kCoefficients = 2, kValues = 2, kFlags = 2, kOutputs = 3, kKept = 0;
  static constexpr bool kReverse = false, kFirst = false, kLast = false;
  enum { kGradAdvantage, kGradTarget };

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(kGradAdvantage) + s.v(kGradTarget), unless(ends(s), s.c(kGamma) * s.c(kLmbda))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, const T*, T g, T, T* out) {
    out[0] = s.v(kGradTarget) - g;
    out[1] = unless(s.f(kTerminated), s.c(kGamma) * g);
    out[2] = g;
  }
};

// trace[t] = 0 if ends[t] or t == T-1 else lmbda[t]
// x[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) * (1 - trace[t])
// decay[t] = gamma[t] * trace[t]
// returns[t] = x[t] + decay[t] * returns[t+1]
struct TdLambda {
  static constexpr const char* kName = "td_lambda";
  static constexpr int kCoefficients = 2, kValues = 2, kFlags = 2, kOutputs = 1, kKept = 0;
  static constexpr bool kReverse = true, kFirst = false, kLast = true;
  enum { kNextValue, kReward };

  template <class S, class T = typename S::Real>
  static INLINE T trace(const S& s) {
    return unless(s.last, unless(ends(s), s.c(kLmbda)));
  }
  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * s.v(kNextValue));
    return {s.v(kReward) + bootstrap * (Number<T>(1) - trace(s)), cut(trace(s), s.c(kGamma))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S&, const T*, T y, T, T* out) {
    out[0] = y;
  }
};

// g[t] = grad_returns[t] + decay[t-1] * g[t-1]: the gradient of x
// grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * (1 - trace[t]) * g[t]
// grad_reward[t] = g[t]
struct TdLambdaBackward {
  static constexpr const char* kName = "td_lambda_backward";
  static constexpr int kCoefficients = 2, kValues = 1, kFlags = 2, kOutputs = 2, kKept = 0;
  static constexpr bool kReverse = false, kFirst = false, kLast = true;

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    return {s.v(0), cut(TdLambda::trace(s), s.c(kGamma))};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, const T*, T g, T, T* out) {
    out[0] = unless(s.f(kTerminated), s.c(kGamma) * (Number<T>(1) - TdLambda::trace(s)) * g);
    out[1] = g;
  }
};

// ratio[t] = exp(min(log_pi[t] - log_mu[t], kLargestLogRatio))
// rho[t], c[t], pg_rho[t] = ratio[t], each clipped to at most rho_thresh[t], c_thresh[t], pg_rho_thresh[t]
// delta[t] = reward[t] + gamma[t] * (0 if terminated[t] else next_state_value[t]) - state_value[t]
// decay[t] = 0 if ends[t] else gamma[t] * lmbda[t] * c[t]
// y[t] = rho[t] * delta[t] + decay[t] * y[t+1]: the correction of the value
// value_target[t] = state_value[t] + y[t]
// next_target[t] = next_state_value[t] if ends[t] or t == T-1 else state_value[t+1] + lmbda[t] * y[t+1]
// advantage[t] = pg_rho[t] * (reward[t] + gamma[t] * (0 if terminated[t] else next_target[t]) - state_value[t])
struct VTrace {
  static constexpr const char* kName = "vtrace";
  static constexpr int kCoefficients = 5, kValues = 5, kFlags = 2, kOutputs = 2, kKept = 1;
  static constexpr bool kReverse = true, kFirst = false, kLast = true;
  enum { kRhoThresh = 1, kCThresh, kPgRhoThresh, kLmbda };
  enum { kLogPi, kLogMu, kValue, kNextValue, kReward };

  // The value of LARGEST_LOG_RATIO in _precision.py. With larger logarithms the ratio would overflow in float32.
  static constexpr double kLargestLogRatio = 80;
  enum { kRatio };  // kept

  template <class S, class T = typename S::Real>
  static INLINE T ratio(const S& s) {
    const T log_ratio = s.v(S::Form::kLogPi) - s.v(S::Form::kLogMu);
    return exponential(at_most(log_ratio, repeat<T>(kLargestLogRatio)));
  }
  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T r = ratio(s);
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * s.v(kNextValue));
    const T rho_delta = at_most(r, s.c(kRhoThresh)) * (s.v(kReward) + bootstrap - s.v(kValue));
    return {rho_delta, unless(ends(s), s.c(kGamma) * s.c(kLmbda) * at_most(r, s.c(kCThresh))), {r}};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, const T* kept, T y, T y_after, T* out) {
    const T pg_rho = at_most(kept[kRatio], s.c(kPgRhoThresh));
    const T target_after = s.after().v(kValue) + s.c(kLmbda) * y_after;
    const T next_target = pick(ends(s) | s.last, s.v(kNextValue), target_after);
    const T bootstrap = unless(s.f(kTerminated), s.c(kGamma) * next_target);
    out[0] = pg_rho * (s.v(kReward) + bootstrap - s.v(kValue));
    out[1] = s.v(kValue) + y;
  }
};

// sent[t] = 0 if t == 0 or ends[t-1] else grad_advantage[t-1] * pg_rho[t-1] * gamma[t-1]
// g[t] = grad_value_target[t] + lmbda[t-1] * sent[t] + decay[t-1] * g[t-1]: the gradient of rho * delta
// In the following lines, cut[t] = ends[t] or t == T-1, and y[t+1] = value_target[t+1] - state_value[t+1]. The code calls them `is_cut` and
// `correction`.
// grad_rho[t] = g[t] * delta[t]
// grad_pg_rho[t] = grad_advantage[t] * (reward[t] + gamma[t] * (0 if terminated[t] else next_target[t]) - state_value[t])
// grad_c[t] = 0 if cut[t] else g[t] * gamma[t] * lmbda[t] * y[t+1]
// grad_ratio[t] = grad_rho[t] + grad_pg_rho[t] + grad_c[t], each only where ratio[t] does not exceed its threshold
// grad_log_pi[t] = grad_ratio[t] * ratio[t], 0 where log_pi[t] - log_mu[t] exceeds kLargestLogRatio
// grad_log_mu[t] = -grad_log_pi[t]
// grad_reward[t] = rho[t] * g[t] + pg_rho[t] * grad_advantage[t]
// grad_state_value[t] = grad_value_target[t] + sent[t] - grad_reward[t]
// grad_next_state_value[t] = 0 if terminated[t] else gamma[t] * (rho[t] * g[t] + (pg_rho[t] * grad_advantage[t] if cut[t] else 0))
struct VTraceBackward {
  static constexpr const char* kName = "vtrace_backward";
  static constexpr int kCoefficients = 5, kValues = 8, kFlags = 2, kOutputs = 5, kKept = 2;
  static constexpr bool kReverse = false, kFirst = true, kLast = true;
  enum { kGradAdvantage, kGradTarget, kLogPi, kLogMu, kValue, kNextValue, kReward, kTarget };

  enum { kRatio, kSent };  // kept

  template <class S, class T = typename S::Real>
  static INLINE Link<T> prologue(const S& s) {
    const T ratio = VTrace::ratio(s), c = at_most(ratio, s.c(VTrace::kCThresh));
    // sent[t]: the gradient that advantage[t-1] sends to next_target[t-1] = state_value[t] + lmbda[t-1] * y[t].
    const S before = s.before();
    const auto starts = ends(before) | s.first;
    const T pg_rho = at_most(VTrace::ratio(before), before.c(VTrace::kPgRhoThresh));
    const T sent = unless(starts, before.v(kGradAdvantage) * pg_rho * before.c(kGamma));
    const T sent_to_correction = unless(starts, before.c(VTrace::kLmbda) * sent);
    const T decay = unless(ends(s), s.c(kGamma) * s.c(VTrace::kLmbda) * c);
    return {s.v(kGradTarget) + sent_to_correction, decay, {ratio, sent}};
  }
  template <class S, class T = typename S::Real>
  static INLINE void epilogue(const S& s, const T* kept, T g, T, T* out) {
    const T gamma = s.c(kGamma), lmbda = s.c(VTrace::kLmbda), log_ratio = s.v(kLogPi) - s.v(kLogMu);
    const T ratio = kept[kRatio];
    const T rho = at_most(ratio, s.c(VTrace::kRhoThresh)), pg_rho = at_most(ratio, s.c(VTrace::kPgRhoThresh));
    const auto is_cut = ends(s) | s.last;
    const T bootstrap = unless(s.f(kTerminated), gamma * s.v(kNextValue));
    const T correction = s.after().v(kTarget) - s.after().v(kValue);
    const T target_after = s.after().v(kValue) + lmbda * correction;
    const T bootstrap_of_target = unless(s.f(kTerminated), gamma * pick(is_cut, s.v(kNextValue), target_after));
    const T grad_rho = g * (s.v(kReward) + bootstrap - s.v(kValue));
    const T grad_pg_rho = s.v(kGradAdvantage) * (s.v(kReward) + bootstrap_of_target - s.v(kValue));
    const T grad_c = unless(is_cut, g * gamma * lmbda * correction);
    const T grad_ratio = unless(ratio > s.c(VTrace::kRhoThresh), grad_rho) +
        unless(ratio > s.c(VTrace::kPgRhoThresh), grad_pg_rho) + unless(ratio > s.c(VTrace::kCThresh), grad_c);
    const T grad_log_pi = unless(log_ratio > repeat<T>(VTrace::kLargestLogRatio), grad_ratio * ratio);
    const T grad_own = pg_rho * s.v(kGradAdvantage), grad_reward = grad_own + rho * g;
    out[0] = grad_log_pi;
    out[1] = -grad_log_pi;
    out[2] = s.v(kGradTarget) + kept[kSent] - grad_reward;
    out[3] = unless(s.f(kTerminated), gamma * (rho * g + pick(is_cut, grad_own, T{})));
    out[4] = grad_reward;
  }
};

// A form with a mask as its last flag, see masked() in kernels/scan_forms.py. Step changes what the functions of the form read at excluded
// steps.
template <class Form>
struct Masked : Form {
  using Unmasked = Form;
  static constexpr int kMask = Form::kFlags, kFlags = Form::kFlags + 1;
  static constexpr bool kLast = true;  // the mask of the next step decides whether the trace ends
};
template <class Form>
constexpr bool is_masked = false;
template <class Form>
constexpr bool is_masked<Masked<Form>> = true;

template <class... Forms>
struct List {};

// All forms. Python passes the index of a form in this list.
template <class... Forms>
using WithMasked = List<LinearScan, LinearScanTransposed, Forms..., Masked<Forms>...>;
using AllForms = WithMasked<Reward2Go, Reward2GoBackward, EligibilityTrace, EligibilityTraceBackward, Gae, GaeBackward, TdLambda,
                            TdLambdaBackward, VTrace, VTraceBackward>;

}  // namespace
