// Copies of operands whose memory the loops of scan.h cannot read in vectors: with other strides, or in half precision. A block of sequences
// is copied, and converted to the type of the computation, scanned, and its outputs are copied back. A block fits the second-level cache.
#pragma once

#include "vectors.h"

namespace {  // internal linkage: one source file includes this

// The type of values and outputs in memory.
enum class Stored { kReal, kFloat16, kBfloat16 };  // kReal: the type of the computation

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

INLINE uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}
INLINE float of_bits(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// convert(from, to) converts a number. Conversions to half precision round to nearest, ties to even, as torch does.
template <class T>
INLINE void convert(const T& from, T& to) {
  to = from;
}
INLINE void convert(const Bfloat16& from, float& to) { to = of_bits(uint32_t(from.bits) << 16); }
INLINE void convert(const float& from, Bfloat16& to) {
  const uint32_t bits = bits_of(from), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
INLINE void convert(const Float16& from, float& to) {
  constexpr uint32_t kRebias = (127 - 15) << 23, kExponent = 0x7c00 << 13;
  const uint32_t magnitude = uint32_t(from.bits & 0x7fff) << 13, sign = uint32_t(from.bits & 0x8000) << 16;
  const uint32_t normal = magnitude + kRebias;
  // A denormal number has no implicit 1: add one, and subtract it as a number.
  const uint32_t denormal = bits_of(of_bits(normal + (1 << 23)) - of_bits((127 - 14) << 23));
  const uint32_t special = normal + kRebias;  // infinity and NaN have the largest exponent
  const uint32_t exponent = magnitude & kExponent;
  to = of_bits(sign | (exponent == 0 ? denormal : exponent == kExponent ? special : normal));
}
INLINE void convert(const float& from, Float16& to) {
  constexpr uint32_t kTooLarge = (127 + 16) << 23, kSmallestNormal = (127 - 14) << 23, kInfinity = 255u << 23;
  constexpr uint32_t kOneBelow = ((127 - 15) + (23 - 10) + 1) << 23;  // adding this number rounds a denormal result
  const uint32_t bits = bits_of(from), magnitude = bits & 0x7fffffff;
  const uint32_t special = magnitude > kInfinity ? 0x7e00 : 0x7c00;
  const uint32_t denormal = bits_of(of_bits(magnitude) + of_bits(kOneBelow)) - kOneBelow;
  const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t rounded = magnitude >= kTooLarge ? special : magnitude < kSmallestNormal ? denormal : normal;
  to.bits = uint16_t(rounded | (bits >> 16 & 0x8000));
}

// Converts numbers that are neighbours in memory.
template <class From, class To>
INLINE void convert_row(const From* from, To* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) convert(from[i], to[i]);
}
#if defined(__F16C__)
INLINE void convert_row(const Float16* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < count; ++i) convert(from[i], to[i]);
}
INLINE void convert_row(const float* from, Float16* to, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) convert(from[i], to[i]);
}
#endif

// The strides of a rectangle of numbers, in elements.
struct Pitch {
  int64_t row, column;
};

// Copies and converts a rectangle. The inner loop runs over the columns, or over the rows if these are closer together in memory.
template <class From, class To>
NOINLINE void copy_block(const void* from, Pitch in, void* to, Pitch out, int64_t rows, int64_t columns) {
  if (in.row < in.column || out.row < out.column) {
    std::swap(in.row, in.column);
    std::swap(out.row, out.column);
    std::swap(rows, columns);
  }
  const bool contiguous = in.column == 1 && out.column == 1;
  if (contiguous && in.row == columns && out.row == columns) {  // one long row
    columns *= rows;
    rows = 1;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const From* source = static_cast<const From*>(from) + i * in.row;
    To* target = static_cast<To*>(to) + i * out.row;
    if (contiguous)
      convert_row(source, target, columns);
    else
      for (int64_t j = 0; j < columns; ++j) convert(source[j * in.column], target[j * out.column]);
  }
}

}  // namespace
