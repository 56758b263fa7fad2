// Moments of pairs of candidates, added up over rows.
#pragma once

#include "native.h"
#include "vectors.h"

namespace sparsefleet {

// Σ of `pairs` [groups, P, lanes] into ss[i, j] for those i that lie in [low, high): every thread has its own rows of
// ss, so that the order of addition does not depend on the number of threads.
template <class T>
INLINE void scatter(const T* pairs, const int64_t* candidates, int64_t rows, int64_t hc, int64_t atoms, int64_t low,
                    int64_t high, double* ss) {
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t count = hc * (hc - 1) / 2;
    for (int64_t n = 0; n < rows; n++) {
        const T* from = pairs + n / lanes * count * lanes + n % lanes;
        const int64_t* chosen = candidates + n * hc;
        for (int64_t i = 0; i < hc; from += (hc - 1 - i) * lanes, i++) {
            if (chosen[i] < low || chosen[i] >= high) continue;
            double* to = ss + chosen[i] * atoms;
            for (int64_t j = i + 1; j < hc; j++) to[chosen[j]] += from[(j - i - 1) * lanes];
        }
    }
}

}  // namespace sparsefleet
