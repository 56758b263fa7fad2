// Vectors of 64 bytes, as wide as the widest registers: compiled to whatever the processor has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "native.h"

namespace sparsefleet {

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
    typedef float V __attribute__((vector_size(64)));
    typedef int32_t I __attribute__((vector_size(64)));
    static constexpr int64_t count = 16;
    static constexpr float round = 12582912.0f, log2e = 1.44269504f, ln2 = 0.693359375f, ln2_rest = -2.12194440e-4f;
    static constexpr int shift = 23, bias = 127, degree = 7, terms = 4;
    // exp of less is a denormal: it costs ten times an ordinary exp and adds nothing to a sum.
    static constexpr float lowest = -80.0f, tiny = 1e-37f;
};

template <>
struct Lanes<double> {
    typedef double V __attribute__((vector_size(64)));
    typedef int64_t I __attribute__((vector_size(64)));
    static constexpr int64_t count = 8;
    static constexpr double round = 6755399441055744.0, log2e = 1.4426950408889634;
    static constexpr double ln2 = 6.93145751953125e-1, ln2_rest = 1.42860682030941723212e-6;
    static constexpr int shift = 52, bias = 1023, degree = 13, terms = 11;
    static constexpr double lowest = -700.0, tiny = 1e-300;
};

template <class T>
using Vec = typename Lanes<T>::V;

template <class T>
INLINE void larger(Vec<T>& a, const Vec<T>& b) {
    a = a > b ? a : b;
}

// x <- exp(max(x, lowest)) for x <= 0: 2^k e^r with r = x - k ln 2, e^r by its Taylor polynomial. Relative error below
// 1.5e-7 (float) and 5e-16 (double).
template <class T>
INLINE void exponential(Vec<T>& x) {
    using L = Lanes<T>;
    using I = typename L::I;
    const Vec<T> least = Vec<T>{} + L::lowest;
    larger<T>(x, least);
    const Vec<T> shifted = x * L::log2e + L::round;
    const Vec<T> k = shifted - L::round;
    const Vec<T> r = (x - k * L::ln2) - k * L::ln2_rest;
    constexpr T inverse[14] = {1.0,          1.0,           1.0 / 2,         1.0 / 6,          1.0 / 24,
                               1.0 / 120,    1.0 / 720,     1.0 / 5040,      1.0 / 40320,      1.0 / 362880,
                               1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    Vec<T> p = Vec<T>{} + inverse[L::degree];
#pragma GCC unroll 13
    for (int i = L::degree - 1; i >= 0; i--) p = p * r + inverse[i];
    const I power = ((I)shifted << L::shift) + ((typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type)
                                                    L::bias
                                                << L::shift);
    x = p * (Vec<T>)power;
}

// log(mantissa) + exponent ln 2 for a positive x, by the series of artanh. Absolute error below 1e-7 and 3e-16.
template <class T>
INLINE void logarithm(Vec<T>& x) {
    using L = Lanes<T>;
    using I = typename L::I;
    using W = typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type;
    // Exponents count from √½, so that the mantissa is in [√½, √2).
    const T half = T(0.70710678118654752440);
    W offset;
    std::memcpy(&offset, &half, sizeof(T));
    const I exponent = ((I)x - offset) >> L::shift;
    const Vec<T> m = (Vec<T>)((I)x - (exponent << L::shift));
    const Vec<T> s = (m - T(1)) / (m + T(1)), z = s * s;
    Vec<T> series = Vec<T>{} + T(1) / T(2 * L::terms + 1);
#pragma GCC unroll 12
    for (int k = L::terms - 1; k >= 0; k--) series = series * z + T(1) / T(2 * k + 1);
    const Vec<T> e = __builtin_convertvector(exponent, Vec<T>);
    x = (s * T(2)) * series + e * L::ln2_rest + e * L::ln2;
}

template <class T>
INLINE T sum(const Vec<T>& v) {
    const T* at = reinterpret_cast<const T*>(&v);
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < Lanes<T>::count; i++) total += at[i];
    return total;
}

template <class T>
INLINE T largest(const Vec<T>& v) {
    const T* at = reinterpret_cast<const T*>(&v);
    T top = at[0];
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < Lanes<T>::count; i++) top = at[i] > top ? at[i] : top;
    return top;
}

// Memory of this thread for `count` vectors, kept from call to call.
template <class T>
inline Vec<T>* scratch(size_t count) {
    static thread_local std::vector<char> held;
    if (held.size() < (count + 1) * 64) held.resize((count + 1) * 64);
    return reinterpret_cast<Vec<T>*>((reinterpret_cast<uintptr_t>(held.data()) + 63) / 64 * 64);
}

}  // namespace sparsefleet
