// What all compiled kernels share.
#pragma once

#include <algorithm>
#include <cstdint>

// One build for all processors: the loader picks the variant with the widest vectors that this processor has.
// Such a function must not hold an OpenMP region itself: the compiler would not clone its body.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif
// Helpers of such functions are compiled into each variant.
#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace sparsefleet {

// Calls work(first, last) for pieces of the rows 0 … rows-1, dealt to `threads` threads.
template <class Work>
void for_rows(int64_t rows, int64_t piece, int64_t threads, Work work) {
    const int64_t pieces = (rows + piece - 1) / piece;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && pieces > 1)
    for (int64_t i = 0; i < pieces; i++) work(i * piece, std::min(rows, (i + 1) * piece));
}

}  // namespace sparsefleet
