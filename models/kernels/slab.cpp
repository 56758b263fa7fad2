// Truncated posteriors of the spike-and-slab model with a diagonal slab: everything between scores and means.
//
// As in linear.cpp, sixteen rows go through the states of several atoms together, one lane each. For a state of m atoms
// with B = I + R G R, R = diag √ψ, and u = R (b - G μ), its gain is (μᵀ(2b - Gμ) - log|B| + uᵀB⁻¹u)/2, and its
// coefficients have mean μ + R B⁻¹u and covariance R B⁻¹ R.
#include <cmath>
#include <cstring>

#include "native.h"
#include "scatter.h"
#include "selection.h"
#include "vectors.h"

namespace {

using sparsefleet::Lanes;
using sparsefleet::Vec;

constexpr int64_t MOST = 6;  // atoms of a state

template <class T>
struct Problem {
    int64_t atoms, padded, candidates, active;
    const T* gram;          // [H, H]
    const T* gain;          // [3, padded] gain of a singleton as a polynomial in b
    const T* kappa;         // [3, padded] mean of its coefficient as constant and slope in b; its variance
    const T* logit;         // [padded]
    const T* mean;          // [padded] μ
    const T* root;          // [padded] √ψ
    const int32_t* where;   // positions of the states of 2 … γ candidates, smaller states first
    const int64_t* counts;  // [γ+1] states of each size
    double beta, heat;
    bool moments, plain;
};

template <class T>
struct Rows {
    T* scores;             // [n, H] b; becomes <s∘z>
    int64_t* candidates;   // [n, H']
    const uint8_t* use;    // [n]
    double* log_z;         // [n]
    double* log_evidence;  // [n]
    T* pairs;              // [groups, P, lanes] Σ q z_i z_j
    double* sums;          // [3, H] of this piece: Σ <s>, <s∘z>, <(s∘z)²>
};

// Working memory of one group of rows, in vectors.
template <class T>
struct Work {
    Vec<T>*scores, *row, *b, *root, *mean, *logit, *scaled, *drift, *joints, *plain, *moments, *s, *sz, *zz;
    static int64_t stored(const Problem<T>& p) {
        int64_t total = 0;
        for (int64_t m = 2; m <= p.active; m++) total += p.counts[m] * (m + m * (m + 1) / 2);
        return total;
    }
    static int64_t states(const Problem<T>& p) {
        int64_t total = 0;
        for (int64_t m = 2; m <= p.active; m++) total += p.counts[m];
        return total;
    }
    static size_t size(const Problem<T>& p) {
        const int64_t width = p.padded / Lanes<T>::count, hc = p.candidates;
        return (Lanes<T>::count + 3) * width + 6 * hc + 3 * hc * hc + 2 * states(p) + stored(p);
    }
    Work(Vec<T>* at, const Problem<T>& p) {
        const int64_t width = p.padded / Lanes<T>::count, hc = p.candidates;
        auto take = [&](int64_t n) { return (at += n) - n; };
        scores = take(Lanes<T>::count * width);
        row = take(3 * width);
        b = take(hc), root = take(hc), mean = take(hc), logit = take(hc), s = take(hc), sz = take(hc);
        scaled = take(hc * hc), drift = take(hc * hc), zz = take(hc * hc);
        joints = take(states(p)), plain = take(states(p)), moments = take(stored(p));
    }
};

// Gains and, where wanted, moments of all states of M atoms: M means, then the upper triangle of the second moments.
template <class T, int M>
INLINE void states_of(const Problem<T>& p, const Work<T>& w, const int32_t* where, int64_t count, Vec<T>* joints,
                      Vec<T>* plain, Vec<T>* out) {
    const int64_t hc = p.candidates;
    const T beta = T(p.beta), heat = T(p.heat);
    for (int64_t state = 0; state < count; state++, where += M) {
        Vec<T> lower[M][M], inverse[M][M], u[M], det = Vec<T>{} + T(1), exponent = {}, gain = {}, odds = {};
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            Vec<T> residual = w.b[where[i]];
#pragma GCC unroll 6
            for (int j = 0; j < M; j++) residual -= w.drift[where[i] * hc + where[j]];
            gain += w.mean[where[i]] * (w.b[where[i]] + residual);
            odds += w.logit[where[i]];
            u[i] = w.root[where[i]] * residual;
        }
#pragma GCC unroll 6
        for (int j = 0; j < M; j++) {
            Vec<T> pivot = w.scaled[where[j] * hc + where[j]];
#pragma GCC unroll 6
            for (int k = 0; k < j; k++) pivot -= lower[j][k] * lower[j][k];
            // B = I + (positive semi-definite): no pivot is below 1.
            sparsefleet::larger<T>(pivot, Vec<T>{} + T(1));
            // Two pivots' product stays in range.
            det *= pivot;
            if (j % 2 || j == M - 1) {
                sparsefleet::logarithm<T>(det);
                exponent += det;
                det = Vec<T>{} + T(1);
            }
            Vec<T> root;
            for (int64_t lane = 0; lane < Lanes<T>::count; lane++) root[lane] = std::sqrt(pivot[lane]);
            const Vec<T> scale = T(1) / root;
#pragma GCC unroll 6
            for (int k = 0; k < j; k++) {
                Vec<T> total = {};
#pragma GCC unroll 6
                for (int i = k; i < j; i++) total += lower[j][i] * inverse[i][k];
                inverse[j][k] = -scale * total;
            }
            inverse[j][j] = scale;
#pragma GCC unroll 6
            for (int i = j + 1; i < M; i++) {
                Vec<T> total = w.scaled[where[i] * hc + where[j]];
#pragma GCC unroll 6
                for (int k = 0; k < j; k++) total -= lower[i][k] * lower[j][k];
                lower[i][j] = total * scale;
            }
        }
        Vec<T> v[M];
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            v[i] = Vec<T>{};
#pragma GCC unroll 6
            for (int k = 0; k <= i; k++) v[i] += inverse[i][k] * u[k];
            gain += v[i] * v[i];
        }
        gain = (gain - exponent) * T(0.5);
        joints[state] = gain * beta + odds * heat;
        plain[state] = gain + odds;
        if (!p.moments) continue;
        Vec<T> kappa[M];
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            Vec<T> y = {};
#pragma GCC unroll 6
            for (int k = i; k < M; k++) y += inverse[k][i] * v[k];
            *out++ = kappa[i] = w.mean[where[i]] + w.root[where[i]] * y;
        }
#pragma GCC unroll 6
        for (int i = 0; i < M; i++)
#pragma GCC unroll 6
            for (int j = i; j < M; j++) {
                Vec<T> cov = {};
#pragma GCC unroll 6
                for (int k = j; k < M; k++) cov += inverse[k][i] * inverse[k][j];
                *out++ = cov * w.root[where[i]] * w.root[where[j]] + kappa[i] * kappa[j];
            }
    }
}

template <class T>
INLINE void evaluate(const Problem<T>& p, const Work<T>& w) {
    const int32_t* where = p.where;
    Vec<T>*joints = w.joints, *plain = w.plain, *out = w.moments;
    for (int64_t m = 2; m <= p.active; m++) {
        if (m == 2) states_of<T, 2>(p, w, where, p.counts[m], joints, plain, out);
        if (m == 3) states_of<T, 3>(p, w, where, p.counts[m], joints, plain, out);
        if (m == 4) states_of<T, 4>(p, w, where, p.counts[m], joints, plain, out);
        if (m == 5) states_of<T, 5>(p, w, where, p.counts[m], joints, plain, out);
        if (m == 6) states_of<T, 6>(p, w, where, p.counts[m], joints, plain, out);
        where += m * p.counts[m], joints += p.counts[m], plain += p.counts[m];
        out += p.counts[m] * (m + m * (m + 1) / 2);
    }
}

// Joints become exp(joint - top); their sum.
template <class T>
INLINE void weigh(Vec<T>* joints, int64_t states, Vec<T>& top, Vec<T>& total) {
    for (int64_t s = 0; s < states; s++) sparsefleet::larger<T>(top, joints[s]);
    total = Vec<T>{};
    for (int64_t s = 0; s < states; s++) {
        joints[s] -= top;
        sparsefleet::exponential<T>(joints[s]);
        total += joints[s];
    }
}

// Σ over states of weight × moments, by candidate and pair of candidates.
template <class T>
INLINE void collect(const Problem<T>& p, const Work<T>& w) {
    const int64_t hc = p.candidates;
    std::memset(w.s, 0, hc * sizeof(Vec<T>));
    std::memset(w.sz, 0, hc * sizeof(Vec<T>));
    std::memset(w.zz, 0, hc * hc * sizeof(Vec<T>));
    const int32_t* where = p.where;
    const Vec<T>*q = w.joints, *in = w.moments;
    for (int64_t m = 2; m <= p.active; m++)
        for (int64_t state = 0; state < p.counts[m]; state++, where += m, q++) {
            for (int64_t i = 0; i < m; i++) w.s[where[i]] += *q;
            for (int64_t i = 0; i < m; i++) w.sz[where[i]] += *q * *in++;
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = i; j < m; j++) w.zz[where[i] * hc + where[j]] += *q * *in++;
        }
}

// (gain of the singletons) β + (their logit) heat: the largest of a row, or Σ exp(· - top), kept in `out`.
template <class T>
INLINE Vec<T> single(const Problem<T>& p, const Vec<T>* b, int64_t j, T beta, T heat) {
    const int64_t width = p.padded / Lanes<T>::count;
    const Vec<T>* gain = reinterpret_cast<const Vec<T>*>(p.gain);
    const Vec<T> value = gain[j] + (gain[width + j] + gain[2 * width + j] * b[j]) * b[j];
    return value * beta + reinterpret_cast<const Vec<T>*>(p.logit)[j] * heat;
}

template <class T>
INLINE T largest_single(const Problem<T>& p, const Vec<T>* b, T beta, T heat) {
    Vec<T> top = {};
    for (int64_t j = 0; j < p.padded / Lanes<T>::count; j++) sparsefleet::larger<T>(top, single<T>(p, b, j, beta, heat));
    return sparsefleet::largest<T>(top);
}

template <class T>
INLINE T sum_single(const Problem<T>& p, const Vec<T>* b, T beta, T heat, T top, Vec<T>* out) {
    Vec<T> total = {};
    for (int64_t j = 0; j < p.padded / Lanes<T>::count; j++) {
        Vec<T> x = single<T>(p, b, j, beta, heat) - top;
        sparsefleet::exponential<T>(x);
        out[j] = x;
        total += x;
    }
    Vec<T> empty = Vec<T>{} - top;
    sparsefleet::exponential<T>(empty);
    return sparsefleet::sum<T>(total) + empty[0];
}

template <class T>
INLINE void finish_row(const Problem<T>& p, const Work<T>& w, int64_t lane, const int64_t* chosen, T inverse,
                       T* __restrict__ means, double* __restrict__ sums) {
    const int64_t hc = p.candidates, width = p.padded / Lanes<T>::count;
    const Vec<T>*b = w.scores + lane * width, *kappa = reinterpret_cast<const Vec<T>*>(p.kappa);
    T* flat = reinterpret_cast<T*>(w.row);
    for (int64_t j = 0; j < width; j++) {
        const Vec<T> q = w.row[j] * inverse, k = kappa[j] + kappa[width + j] * b[j];
        w.row[j] = q;
        w.row[width + j] = q * k;
        w.row[2 * width + j] = q * (kappa[2 * width + j] + k * k);
    }
    for (int64_t j = 0; j < hc; j++) {
        flat[chosen[j]] += w.s[j][lane] * inverse;
        flat[p.padded + chosen[j]] += w.sz[j][lane] * inverse;
        flat[2 * p.padded + chosen[j]] += w.zz[j * hc + j][lane] * inverse;
    }
    for (int64_t i = 0; i < 3; i++)
#pragma omp simd
        for (int64_t h = 0; h < p.atoms; h++) sums[i * p.atoms + h] += flat[i * p.padded + h];
    std::memcpy(means, flat + p.padded, p.atoms * sizeof(T));
}

template <class T>
INLINE void gather(const Problem<T>& p, const Rows<T>& r, const Work<T>& w, int64_t first, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t hc = p.candidates, width = p.padded / lanes;
    for (int64_t lane = 0; lane < lanes; lane++) {
        const int64_t n = first + (lane < count ? lane : count - 1);
        Vec<T>* b = w.scores + lane * width;
        b[width - 1] = Vec<T>{};
        std::memcpy(b, r.scores + n * p.atoms, p.atoms * sizeof(T));
        const T* score = reinterpret_cast<const T*>(b);
        int64_t* chosen = r.candidates + n * hc;
        if (lane < count) {
            for (int64_t j = 0; j < width; j++) w.row[j] = single<T>(p, b, j, T(1), T(0));
            // Atoms that only fill up the last vector come last.
            T *rank = reinterpret_cast<T*>(w.row), *held = reinterpret_cast<T*>(w.s);
            sparsefleet::top_k_row(rank, p.atoms, hc, held, chosen);
        }
        for (int64_t j = 0; j < hc; j++) {
            const int64_t h = chosen[j];
            w.b[j][lane] = score[h];
            w.root[j][lane] = p.root[h];
            w.mean[j][lane] = p.mean[h];
            w.logit[j][lane] = p.logit[h];
            for (int64_t i = 0; i <= j; i++) w.zz[i * hc + j][lane] = p.gram[chosen[i] * p.atoms + h];
        }
    }
    for (int64_t i = 0; i < hc; i++)
        for (int64_t j = i; j < hc; j++) {
            const Vec<T> g = w.zz[i * hc + j];
            w.drift[i * hc + j] = g * w.mean[j];
            w.drift[j * hc + i] = g * w.mean[i];
            w.scaled[i * hc + j] = w.scaled[j * hc + i] = g * w.root[i] * w.root[j] + T(i == j);
        }
}

template <class T>
INLINE void group(const Problem<T>& p, const Rows<T>& r, const Work<T>& w, int64_t first, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t hc = p.candidates, width = p.padded / lanes, states = Work<T>::states(p);
    const T beta = T(p.beta), heat = T(p.heat);
    Vec<T> top = {}, plain_top = {}, total, plain_total, inverse = {};
    gather(p, r, w, first, count);
    for (int64_t lane = 0; lane < lanes; lane++) {
        top[lane] = largest_single(p, w.scores + lane * width, beta, heat);
        if (p.plain) plain_top[lane] = largest_single(p, w.scores + lane * width, T(1), T(1));
    }
    evaluate(p, w);
    weigh<T>(w.joints, states, top, total);
    if (p.plain) weigh<T>(w.plain, states, plain_top, plain_total);
    if (p.moments) collect(p, w);
    for (int64_t lane = 0; lane < count; lane++) {
        const int64_t n = first + lane;
        const Vec<T>* b = w.scores + lane * width;
        if (p.plain) {
            const T sum = sum_single(p, b, T(1), T(1), plain_top[lane], w.row) + plain_total[lane];
            r.log_evidence[n] = double(plain_top[lane]) + std::log(double(sum));
        }
        const T sum = sum_single(p, b, beta, heat, top[lane], w.row) + total[lane];
        r.log_z[n] = double(top[lane]) + std::log(double(sum));
        if (!p.plain) r.log_evidence[n] = r.log_z[n];
        if (!p.moments) continue;
        inverse[lane] = r.use[n] ? T(1) / sum : T(0);
        finish_row(p, w, lane, r.candidates + n * hc, inverse[lane], r.scores + n * p.atoms, r.sums);
    }
    if (!p.moments) return;
    Vec<T>* pairs = reinterpret_cast<Vec<T>*>(r.pairs) + first / lanes * (hc * (hc - 1) / 2);
    for (int64_t i = 0; i < hc; i++)
        for (int64_t j = i + 1; j < hc; j++) *pairs++ = w.zz[i * hc + j] * inverse;
}

#define DEFINE(T, SUFFIX)                                                                                             \
    EVERY_PROCESSOR void slab_piece_##SUFFIX(const Problem<T>& p, const Rows<T>& r, Vec<T>* memory, int64_t first,    \
                                             int64_t last) {                                                          \
        const Work<T> work(memory, p);                                                                                \
        for (int64_t n = first; n < last; n += Lanes<T>::count) group(p, r, work, n, std::min(last - n, Lanes<T>::count)); \
    }                                                                                                                 \
    EVERY_PROCESSOR void slab_scatter_##SUFFIX(const T* pairs, const int64_t* candidates, int64_t rows, int64_t hc,   \
                                               int64_t atoms, int64_t low, int64_t high, double* zz) {                \
        sparsefleet::scatter(pairs, candidates, rows, hc, atoms, low, high, zz);                                      \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                             \
    EXPORT int64_t slab_rows_##SUFFIX(                                                                                \
        T* scores, int64_t rows, int64_t atoms, int64_t padded, const T* gram, const T* gain, const T* kappa,         \
        const T* logit, const T* mean, const T* root, const int32_t* where, const int64_t* counts, int64_t candidates, \
        int64_t active, double beta, double heat, int64_t plain, int64_t* chosen, const uint8_t* use, double* log_z,  \
        double* log_evidence, int64_t moments, T* pairs, double* sums, int64_t rows_per_piece, double* zz,            \
        int64_t threads) {                                                                                            \
        if (active > MOST) return 1;                                                                                  \
        const Problem<T> p = {atoms, padded, candidates, active, gram, gain,         kappa,     logit, mean,          \
                              root,  where,  counts,     beta,   heat, moments != 0, plain != 0};                     \
        sparsefleet::for_rows(rows, rows_per_piece, threads, [&](int64_t first, int64_t last) {                       \
            const Rows<T> r = {scores, chosen,       use, log_z, log_evidence, pairs,                                 \
                               sums + first / rows_per_piece * 3 * atoms};                                            \
            slab_piece_##SUFFIX(p, r, sparsefleet::scratch<T>(Work<T>::size(p)), first, last);                        \
        });                                                                                                           \
        if (moments && candidates > 1)                                                                                \
            sparsefleet::for_rows(atoms, (atoms + threads - 1) / threads, threads, [&](int64_t low, int64_t high) {   \
                slab_scatter_##SUFFIX(pairs, chosen, rows, candidates, atoms, low, high, zz);                         \
            });                                                                                                       \
        return 0;                                                                                                     \
    }
DEFINE(float, f32)
DEFINE(double, f64)
