// What loops whose state shall stay in registers do with vectors: narrower processors split them.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "native.h"
#include "vectors.h"

namespace sparsefleet {

template <class T, class V>
INLINE void load(V& v, const T* from) {
    __builtin_memcpy(&v, from, sizeof(V));
}
template <class T, class V>
INLINE void store(T* to, const V& v) {
    __builtin_memcpy(to, &v, sizeof(V));
}

// The first address from `from` on that a vector does not cross two cache lines at.
template <class T>
INLINE T* aligned(T* from) {
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(from) + 63) & ~uintptr_t(63));
}

// The place of the largest score seen, the lowest among equals, kept per lane of four vectors.
template <class T>
struct Largest {
    using V = Vec<T>;
    using I = typename Lanes<T>::I;
    static constexpr int64_t lanes = Lanes<T>::count;
    V top[4];
    I at[4];
    T single = T(-1);
    int64_t single_at = 0;

    INLINE_MEMBER Largest() {
        for (int64_t u = 0; u < 4; u++) {
            top[u] = V{} - T(1);
            at[u] = I{};
        }
    }
    // Scores of atoms x … x+lanes-1. Each u must see ascending x.
    INLINE_MEMBER void see(int64_t u, const V& score, int64_t x) {
        I place = I{};
        for (int64_t l = 0; l < lanes; l++) place[l] = l;
        place += static_cast<typename std::decay<decltype(place[0])>::type>(x);
        const I larger = score > top[u];
        top[u] = larger ? score : top[u];
        at[u] = larger ? place : at[u];
    }
    INLINE_MEMBER void see_one(T score, int64_t x) {
        if (score > single) {
            single = score;
            single_at = x;
        }
    }
    INLINE_MEMBER int64_t find() const {
        V best = top[0];
        for (int64_t u = 1; u < 4; u++) best = top[u] > best ? top[u] : best;
        T most = single;
        for (int64_t l = 0; l < lanes; l++) most = best[l] > most ? best[l] : most;
        int64_t found = single == most ? single_at : std::numeric_limits<int64_t>::max();
        I first = at[0] - at[0] + std::numeric_limits<int32_t>::max();
        for (int64_t u = 0; u < 4; u++) {
            const I here = (top[u] == most) ? at[u] : first;
            first = here < first ? here : first;
        }
        for (int64_t l = 0; l < lanes; l++) found = first[l] < found ? first[l] : found;
        return found;
    }
};

}  // namespace sparsefleet
