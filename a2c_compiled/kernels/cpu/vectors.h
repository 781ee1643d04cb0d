// Vectors of numbers and of conditions, and functions that treat a vector and a single number alike. The forms and the loops are written
// with these, so that every loop runs in vector operations whatever the compiler makes of the loop.
//
//   Pack<T, n>       n numbers of type T, or a T if n is 1
//   PackMask<T, n>   n conditions for a Pack<T, n>, or a bool if n is 1
//   kWidth<T>        the numbers in a vector register, 1 if the compiler has no vector types
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define PREFETCH(address, writes) __builtin_prefetch(address, writes, 2)  // into the second-level cache
#else
#define INLINE inline
#define NOINLINE
#define PREFETCH(address, writes)
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_VECTORS
#endif
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {  // internal linkage: one source file includes this

#if !defined(HAS_VECTORS)
constexpr int kVectorBytes = 1;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2, NEON
#endif

template <class T>
constexpr int kWidth = kVectorBytes > int(sizeof(T)) ? kVectorBytes / int(sizeof(T)) : 1;

template <class T>
using SignedBits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T, int kCount>
struct PackOf {
#if defined(HAS_VECTORS)
  typedef T type __attribute__((vector_size(kCount * sizeof(T))));
#endif
};
template <class T>
struct PackOf<T, 1> {
  using type = T;
};
template <class T, int kCount>
using Pack = typename PackOf<T, kCount>::type;
template <class T, int kCount>
using PackMask = std::conditional_t<kCount == 1, bool, Pack<SignedBits<T>, kCount>>;

// The type of the numbers in a vector. The type of a number is the type itself.
template <class V>
struct NumberOf {
  using type = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;
};
template <>
struct NumberOf<float> {
  using type = float;
};
template <>
struct NumberOf<double> {
  using type = double;
};
template <class V>
using Number = typename NumberOf<V>::type;

template <class V>
INLINE V load(const Number<V>* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class V>
INLINE void store(Number<V>* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

// Returns a vector of equal numbers.
template <class V>
INLINE V repeat(Number<V> number) {
  return number - V{};
}

// Returns a mask of equal conditions.
template <class Mask>
INLINE Mask repeat_condition(bool condition) {
  if constexpr (std::is_same_v<Mask, bool>)
    return condition;
  else
    return Mask{} - condition;
}

// Returns conditions from numbers that are -1 or 0.
template <class Mask, class Bits>
INLINE Mask load_mask(const Bits* from) {
  if constexpr (std::is_same_v<Mask, bool>)
    return *from != 0;
  else
    return load<Mask>(from);
}

// Returns which of the bytes at `from` are not 0. The compiler's own conversion of bytes would convert them one by one.
template <class Mask, int... kIndex>
INLINE Mask load_flags(const uint8_t* from, std::integer_sequence<int, kIndex...>) {
  constexpr int kCount = sizeof...(kIndex);
#if defined(__AVX512F__)
  if constexpr (kCount == 16)
    return Mask(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))) > 0;
  else
    return Mask(_mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))) > 0;
#elif defined(__AVX2__)
  if constexpr (kCount == 8)
    return Mask(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))) > 0;
  else
    return Mask(_mm256_cvtepu8_epi64(_mm_loadu_si32(from))) > 0;
#else
  Number<Mask> bytes = 0;
  std::memcpy(&bytes, from, kCount);
  constexpr Mask kMasks = {Number<Mask>(std::make_unsigned_t<Number<Mask>>(0xff) << (8 * kIndex))...};
  return (repeat<Mask>(bytes) & kMasks) != 0;
#endif
}
template <class Mask, int kCount>
INLINE Mask load_flags(const uint8_t* from) {
  if constexpr (kCount == 1)
    return *from != 0;
  else
    return load_flags<Mask>(from, std::make_integer_sequence<int, kCount>());
}

// Returns `yes` where the condition holds, else `no`. Vectors are combined bit by bit, because for a conditional expression the compiler
// compares a mask with 0 again.
template <class Mask, class V>
INLINE V pick(Mask condition, V yes, V no) {
  if constexpr (std::is_same_v<V, Number<V>>)
    return condition ? yes : no;
  else
    return V((condition & Mask(yes)) | (~condition & Mask(no)));
}

// Returns 0 where the condition holds, else `value`.
template <class Mask, class V>
INLINE V unless(Mask condition, V value) {
  if constexpr (std::is_same_v<V, Number<V>>)
    return condition ? V(0) : value;
  else
    return V(~condition & Mask(value));
}

// Returns the smaller of both, and NaN if `value` is NaN.
template <class V>
INLINE V at_most(V value, V limit) {
  return value > limit ? limit : value;
}

// Returns a * b, and 0 where a is 0, even if b is NaN or infinite.
template <class V>
INLINE V cut(V a, V b) {
  return a * unless(a == V{}, b);
}

// 1/0!, 1/1!, ...: the Taylor coefficients of exp.
struct Exponential {
  double term[14] = {1};
  constexpr Exponential() {
    for (int i = 1; i < 14; ++i) term[i] = term[i - 1] / i;
  }
};
constexpr Exponential kExponential;

// Returns exp(x) = 2^k * exp(rest), with the integer k nearest to x / log 2 and a polynomial for exp(rest). The result is accurate to the
// last bit but one.
template <class V>
INLINE V exponential(V x) {
  using T = Number<V>;
  constexpr bool kSingle = sizeof(T) == 4;
  using Bits = std::conditional_t<std::is_same_v<V, T>, SignedBits<T>, decltype(x < x)>;
  constexpr int kMantissa = kSingle ? 23 : 52, kBias = kSingle ? 127 : 1023, kDegree = kSingle ? 7 : 13;
  constexpr T kLowest = kSingle ? T(-87) : T(-708);                           // a smaller x has a nearly denormal result: return 0
  constexpr T kRound = kSingle ? T(12582912) : T(6755399441055744);           // 1.5 * 2^mantissa: adding it rounds to an integer
  constexpr T kLog2High = kSingle ? T(0.693359375) : T(0.69314718036912382);  // log 2 as a sum of two: k * kLog2High is exact
  constexpr T kLog2Low = kSingle ? T(-2.12194440e-4) : T(1.9082149292705877e-10);
  constexpr T kPerLog2 = T(1.4426950408889634);
  const V shifted = x * kPerLog2 + kRound;
  const V k = shifted - kRound;
  const V rest = (x - k * kLog2High) - k * kLog2Low;
  // The sum of the series: of pairs of terms, of pairs of pairs, and so on. One term after the other would take twice as long.
  static_assert(kDegree % 2 == 1, "the number of terms is even");
  constexpr int kPairs = (kDegree + 1) / 2;
  V sum[kPairs], power = rest;
#pragma GCC unroll 16
  for (int i = 0; i < kPairs; ++i) sum[i] = T(kExponential.term[2 * i]) + T(kExponential.term[2 * i + 1]) * rest;
#pragma GCC unroll 16
  for (int count = kPairs; count > 1; count = (count + 1) / 2) {
    power *= power;
#pragma GCC unroll 16
    for (int i = 0; i < count / 2; ++i) sum[i] = sum[2 * i] + sum[2 * i + 1] * power;
    if (count % 2) sum[count / 2] = sum[count - 1];
  }
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);  // the low bits of `shifted` are k
  using Unsigned = std::make_unsigned_t<SignedBits<T>>;
  if constexpr (std::is_same_v<V, T>)
    bits = Bits(Unsigned(bits + kBias) << kMantissa);
  else
    bits = (bits + kBias) << kMantissa;
  V scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return unless(x < kLowest, sum[0] * scale);
}

// Exchanges blocks of kBlock numbers: each second block of `a` with the block before it in the other vector, `b`.
template <int kBlock, class V, int... kIndex>
INLINE void exchange(V& a, V& b, std::integer_sequence<int, kIndex...>) {
#if defined(HAS_VECTORS)
  constexpr int kCount = sizeof...(kIndex);
  const V first = __builtin_shufflevector(a, b, (kIndex & kBlock ? kCount + kIndex - kBlock : kIndex)...);
  b = __builtin_shufflevector(a, b, (kIndex & kBlock ? kCount + kIndex : kIndex + kBlock)...);
  a = first;
#endif
}

// Exchanges pairs of numbers in each quarter: `a` gets the numbers 0 and 1 of each quarter of both, in turn, and `b` the numbers 2 and 3.
template <class V, int... kIndex>
INLINE void interleave(V& a, V& b, std::integer_sequence<int, kIndex...>) {
#if defined(HAS_VECTORS)
  constexpr int kCount = sizeof...(kIndex);
  const V first = __builtin_shufflevector(a, b, (kIndex / 4 * 4 + kIndex % 4 / 2 + kIndex % 2 * kCount)...);
  b = __builtin_shufflevector(a, b, (kIndex / 4 * 4 + 2 + kIndex % 4 / 2 + kIndex % 2 * kCount)...);
  a = first;
#endif
}

// Transposes a square matrix. Its rows are vectors.
template <int kBlock = 1, class V, int kCount>
INLINE void transpose(V (&rows)[kCount]) {
  constexpr auto kIndices = std::make_integer_sequence<int, kCount>();
  if constexpr (kBlock == 1 && kCount >= 4 && sizeof(Number<V>) == 4) {
    // Blocks of 4 x 4 in steps of one instruction, which exchange<1> is not on every processor.
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i += 2) interleave(rows[i], rows[i + 1], kIndices);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i += 4) {
      exchange<2>(rows[i], rows[i + 2], kIndices);
      exchange<2>(rows[i + 1], rows[i + 3], kIndices);
      std::swap(rows[i + 1], rows[i + 2]);
    }
    transpose<4>(rows);
  } else if constexpr (kBlock < kCount) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i)
      if (!(i & kBlock)) exchange<kBlock>(rows[i], rows[i + kBlock], kIndices);
    transpose<2 * kBlock>(rows);
  }
}

}  // namespace
