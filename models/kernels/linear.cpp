// Truncated posteriors of linear models with discrete latents: everything between scores and means.
//
// Sixteen rows (eight of doubles) go through the states of several atoms together, one lane each; what concerns all
// atoms goes along each row. A state is a smaller one and one more candidate behind it, so its joint is that of the
// smaller one plus two terms; run backwards, the same steps add up the moments, which are the derivatives of log Z.
#include <cmath>
#include <cstring>

#include "native.h"
#include "scatter.h"
#include "selection.h"
#include "vectors.h"

namespace {

using sparsefleet::Lanes;
using sparsefleet::Vec;

// The states over H' candidate positions as a tree. Nodes are the states of fewer than γ atoms, the empty one first,
// then by their last position; the children of node k by position h and level l follow one another in that order.
struct Tree {
    int64_t candidates, levels;
    const int32_t* begin;   // [H'+1] first node whose last position is h
    const int32_t* start;   // [H'+1] first state whose last position is h; state 0 is the empty one
    const int32_t* parent;  // [nodes] node without its last atom
    const int32_t* level;   // [nodes] level of its last atom
    const int32_t* state;   // [nodes] number of the node as a state
};

template <class T>
struct Problem {
    Tree tree;
    int64_t atoms, padded, rules;
    const T* values;      // [L]
    const T* gram;        // [H, H] over σ²
    const T* own;         // [L, padded] tempered singleton joints: own + slope * b
    const T* slope;       // [L]
    const T* plain_own;   // [L, padded] the same at temperature 1
    const T* plain_slope; // [L]
    const T* rule_own;    // [rules, padded] candidates are the largest of rule_own + rule_slope * b
    const T* rule_slope;  // [rules, padded]
    double beta;
    bool chosen, moments, plain;
};

template <class T>
struct Rows {
    T* scores;             // [n, H] b; becomes <s>
    int64_t* candidates;   // [n, H']
    const uint8_t* use;    // [n]
    double* log_z;         // [n]
    double* log_evidence;  // [n]
    T* pairs;              // [groups, P, lanes]
    double* counts;        // [L, H] of this piece
};

// Working memory of one group of rows, in vectors.
template <class T>
struct Work {
    Vec<T>*scores, *row, *own, *plain_own, *gram, *joints, *inner, *single, *pair;
    static size_t size(const Problem<T>& p, int64_t states, int64_t nodes) {
        const int64_t w = Lanes<T>::count, hc = p.tree.candidates, width = p.padded / w;
        return w * width + (p.tree.levels + 1) * width + 3 * p.tree.levels * hc + 2 * hc * hc + states + nodes;
    }
    Work(Vec<T>* at, const Problem<T>& p, int64_t states, int64_t nodes) {
        const int64_t w = Lanes<T>::count, hc = p.tree.candidates, width = p.padded / w;
        auto take = [&](int64_t n) { return (at += n) - n; };
        scores = take(w * width);
        row = take((p.tree.levels + 1) * width);
        own = take(p.tree.levels * hc);
        plain_own = take(p.tree.levels * hc);
        single = take(p.tree.levels * hc);
        gram = take(hc * hc);
        pair = take(hc * hc);
        joints = take(states);
        inner = take(nodes);
    }
};

// Joints of all states, relative to the empty one, and the largest of them.
// `joints` of node p plus `own` of the new atom minus its value times the product of G with p's atoms.
template <class T, int LEVELS>
INLINE void forward(const Tree& t, const T* values, const Vec<T>* own, const Vec<T>* gram, const T scale, Vec<T>* joints,
                    Vec<T>* inner, Vec<T>& top) {
    const int64_t levels = LEVELS ? LEVELS : t.levels, hc = t.candidates;
    const Vec<T> zero = {};
    joints[0] = zero;
    inner[0] = zero;
    Vec<T> most = top;
    for (int64_t h = 0; h < hc; h++) {
        Vec<T>* out = joints + t.start[h];
        for (int64_t l = 0; l < levels; l++) out[l] = own[l * hc + h];
        for (int64_t i = 0; i < h; i++) {
            const Vec<T> g = gram[i * hc + h] * scale;
            for (int64_t k = t.begin[i]; k < t.begin[i + 1]; k++) {
                const Vec<T> c = inner[t.parent[k]] + values[t.level[k]] * g;
                inner[k] = c;
                const Vec<T> base = joints[t.state[k]];
                for (int64_t l = 0; l < levels; l++) {
                    const Vec<T> joint = base + own[l * hc + h] - values[l] * c;
                    out[k * levels + l] = joint;
                    sparsefleet::larger<T>(most, joint);
                }
            }
        }
    }
    top = most;
}

// Turns joints of states of several atoms into exp(joint - top), those of one atom into 0, and gives their sum.
template <class T>
INLINE void weigh(const Tree& t, Vec<T>* joints, const Vec<T>& top, Vec<T>& total) {
    Vec<T> sums[2] = {};
    const Vec<T> zero = {};
    for (int64_t h = 0; h < t.candidates; h++) {
        int64_t s = t.start[h];
        for (; s < t.start[h] + t.levels; s++) joints[s] = zero;
        for (; s + 1 < t.start[h + 1]; s += 2) {
            Vec<T> a = joints[s] - top, b = joints[s + 1] - top;
            sparsefleet::exponential<T>(a);
            sparsefleet::exponential<T>(b);
            sums[0] += joints[s] = a;
            sums[1] += joints[s + 1] = b;
        }
        if (s < t.start[h + 1]) {
            Vec<T> a = joints[s] - top;
            sparsefleet::exponential<T>(a);
            sums[0] += joints[s] = a;
        }
    }
    total = sums[0] + sums[1];
}

// `forward` backwards: from the weights of the states, Σ of those that hold atom h at level l, and Σ weight · s_i s_h.
template <class T, int LEVELS>
INLINE void backward(const Tree& t, const T* values, Vec<T>* weights, Vec<T>* inner, Vec<T>* single, Vec<T>* pair) {
    const int64_t levels = LEVELS ? LEVELS : t.levels, hc = t.candidates;
    std::memset(inner, 0, t.begin[hc] * sizeof(Vec<T>));
    for (int64_t h = hc - 1; h >= 0; h--) {
        const Vec<T>* from = weights + t.start[h];
        Vec<T> held[LEVELS ? LEVELS : 1] = {};
        for (int64_t l = 0; l < levels; l++) {
            if (LEVELS)
                held[l] = from[l];
            else
                single[l * hc + h] = from[l];
        }
        for (int64_t i = h - 1; i >= 0; i--) {
            Vec<T> between = {};
            for (int64_t k = t.begin[i + 1] - 1; k >= t.begin[i]; k--) {
                Vec<T> c = inner[k], both = {};
                inner[k] = Vec<T>{};
                for (int64_t l = 0; l < levels; l++) {
                    const Vec<T> w = from[k * levels + l];
                    both += w;
                    c += values[l] * w;
                    if (LEVELS)
                        held[l] += w;
                    else
                        single[l * hc + h] += w;
                }
                weights[t.state[k]] += both;
                between += values[t.level[k]] * c;
                inner[t.parent[k]] += c;
            }
            pair[i * hc + h] = between;
        }
        inner[0] = Vec<T>{};
        if (LEVELS)
            for (int64_t l = 0; l < levels; l++) single[l * hc + h] = held[l];
    }
}

template <class T>
INLINE void choose(const Problem<T>& p, const Vec<T>* b, Vec<T>* rank, T* held, int64_t* candidates) {
    const int64_t width = p.padded / Lanes<T>::count;
    const Vec<T>* own = reinterpret_cast<const Vec<T>*>(p.rule_own);
    const Vec<T>* slope = reinterpret_cast<const Vec<T>*>(p.rule_slope);
    for (int64_t j = 0; j < width; j++) {
        Vec<T> best = own[j] + slope[j] * b[j];
        for (int64_t r = 1; r < p.rules; r++)
            sparsefleet::larger<T>(best, own[r * width + j] + slope[r * width + j] * b[j]);
        rank[j] = best;
    }
    sparsefleet::top_k_row(reinterpret_cast<const T*>(rank), p.padded, p.tree.candidates, held, candidates);
}

// The largest joint of one row's states of at most one atom.
template <class T>
INLINE T largest_single(const Problem<T>& p, const T* own, const T* slope, const Vec<T>* b) {
    const int64_t width = p.padded / Lanes<T>::count;
    Vec<T> top = {};
    for (int64_t l = 0; l < p.tree.levels; l++)
        for (int64_t j = 0; j < width; j++)
            sparsefleet::larger<T>(top, reinterpret_cast<const Vec<T>*>(own)[l * width + j] + slope[l] * b[j]);
    return sparsefleet::largest<T>(top);
}

// Σ exp(joint - top) of one row's states of at most one atom; `out` [L, padded] keeps the terms.
template <class T>
INLINE T sum_single(const Problem<T>& p, const T* own, const T* slope, const Vec<T>* b, T top, Vec<T>* out) {
    const int64_t width = p.padded / Lanes<T>::count;
    Vec<T> total = {};
    for (int64_t l = 0; l < p.tree.levels; l++)
        for (int64_t j = 0; j < width; j++) {
            Vec<T> x = reinterpret_cast<const Vec<T>*>(own)[l * width + j] + slope[l] * b[j] - top;
            sparsefleet::exponential<T>(x);
            out[l * width + j] = x;
            total += x;
        }
    Vec<T> empty = Vec<T>{} - top;
    sparsefleet::exponential<T>(empty);
    return sparsefleet::sum<T>(total) + empty[0];
}

// Means and counts of one row from its unnormalised probabilities `q` [L, padded] and the candidates' `single`.
template <class T>
INLINE void finish_row(const Problem<T>& p, int64_t lane, const int64_t* candidates, T inverse, Vec<T>* q,
                       const Vec<T>* single, T* mean, double* counts) {
    const int64_t hc = p.tree.candidates, width = p.padded / Lanes<T>::count;
    T* flat = reinterpret_cast<T*>(q);
    for (int64_t l = 0; l < p.tree.levels; l++)
        for (int64_t j = 0; j < hc; j++) flat[l * p.padded + candidates[j]] += single[l * hc + j][lane];
    Vec<T>* total = q + p.tree.levels * width;
    for (int64_t j = 0; j < width; j++) total[j] = Vec<T>{};
    for (int64_t l = 0; l < p.tree.levels; l++) {
        for (int64_t j = 0; j < width; j++) {
            q[l * width + j] *= inverse;
            total[j] += p.values[l] * q[l * width + j];
        }
#pragma omp simd
        for (int64_t h = 0; h < p.atoms; h++) counts[l * p.atoms + h] += flat[l * p.padded + h];
    }
    std::memcpy(mean, total, p.atoms * sizeof(T));
}

// Rows first … first+count of a piece, count at most the number of lanes; missing lanes repeat the last row.
template <class T, int LEVELS>
INLINE void group(const Problem<T>& p, const Rows<T>& r, const Work<T>& w, int64_t first, int64_t count) {
    constexpr int64_t lanes = Lanes<T>::count;
    const int64_t hc = p.tree.candidates, width = p.padded / lanes, levels = p.tree.levels;
    Vec<T> top = {}, plain_top = {}, total, plain_total;
    for (int64_t lane = 0; lane < lanes; lane++) {
        const int64_t n = first + (lane < count ? lane : count - 1);
        Vec<T>* b = w.scores + lane * width;
        b[width - 1] = Vec<T>{};
        std::memcpy(b, r.scores + n * p.atoms, p.atoms * sizeof(T));
        const T* score = reinterpret_cast<const T*>(b);
        int64_t* chosen = r.candidates + n * hc;
        if (!p.chosen && lane < count) choose(p, b, w.row, reinterpret_cast<T*>(w.single), chosen);
        top[lane] = largest_single(p, p.own, p.slope, b);
        if (p.plain) plain_top[lane] = largest_single(p, p.plain_own, p.plain_slope, b);
        for (int64_t j = 0; j < hc; j++) {
            const int64_t h = chosen[j];
            for (int64_t l = 0; l < levels; l++) {
                w.own[l * hc + j][lane] = p.own[l * p.padded + h] + p.slope[l] * score[h];
                if (p.plain)
                    w.plain_own[l * hc + j][lane] = p.plain_own[l * p.padded + h] + p.plain_slope[l] * score[h];
            }
            for (int64_t i = 0; i < j; i++) w.gram[i * hc + j][lane] = p.gram[chosen[i] * p.atoms + h];
        }
    }
    if (p.plain) {
        forward<T, LEVELS>(p.tree, p.values, w.plain_own, w.gram, T(1), w.joints, w.inner, plain_top);
        weigh<T>(p.tree, w.joints, plain_top, plain_total);
    }
    forward<T, LEVELS>(p.tree, p.values, w.own, w.gram, T(p.beta), w.joints, w.inner, top);
    weigh<T>(p.tree, w.joints, top, total);
    if (p.moments) backward<T, LEVELS>(p.tree, p.values, w.joints, w.inner, w.single, w.pair);
    Vec<T> inverse = {};
    for (int64_t lane = 0; lane < count; lane++) {
        const int64_t n = first + lane;
        const Vec<T>* b = w.scores + lane * width;
        if (p.plain) {
            const T sum = sum_single(p, p.plain_own, p.plain_slope, b, plain_top[lane], w.row) + plain_total[lane];
            r.log_evidence[n] = double(plain_top[lane]) + std::log(double(sum));
        }
        const T sum = sum_single(p, p.own, p.slope, b, top[lane], w.row) + total[lane];
        r.log_z[n] = double(top[lane]) + std::log(double(sum));
        if (!p.plain) r.log_evidence[n] = r.log_z[n];
        if (!p.moments) continue;
        inverse[lane] = r.use[n] ? T(1) / sum : T(0);
        finish_row(p, lane, r.candidates + n * hc, inverse[lane], w.row, w.single, r.scores + n * p.atoms, r.counts);
    }
    if (!p.moments) return;
    Vec<T>* pairs = reinterpret_cast<Vec<T>*>(r.pairs) + first / lanes * (hc * (hc - 1) / 2);
    for (int64_t i = 0; i < hc; i++)
        for (int64_t j = i + 1; j < hc; j++) *pairs++ = w.pair[i * hc + j] * inverse;
}

template <class T, int LEVELS>
INLINE void piece(const Problem<T>& p, const Rows<T>& r, Vec<T>* memory, int64_t states, int64_t nodes, int64_t first,
                  int64_t last) {
    const Work<T> work(memory, p, states, nodes);
    for (int64_t n = first; n < last; n += Lanes<T>::count)
        group<T, LEVELS>(p, r, work, n, std::min(last - n, Lanes<T>::count));
}

#define DEFINE(T, SUFFIX)                                                                                             \
    EVERY_PROCESSOR void linear_piece_##SUFFIX(const Problem<T>& p, const Rows<T>& r, Vec<T>* memory, int64_t states, \
                                               int64_t nodes, int64_t first, int64_t last) {                          \
        if (p.tree.levels == 1)                                                                                       \
            piece<T, 1>(p, r, memory, states, nodes, first, last);                                                    \
        else if (p.tree.levels == 2)                                                                                  \
            piece<T, 2>(p, r, memory, states, nodes, first, last);                                                    \
        else                                                                                                          \
            piece<T, 0>(p, r, memory, states, nodes, first, last);                                                    \
    }                                                                                                                 \
    EVERY_PROCESSOR void linear_scatter_##SUFFIX(const T* pairs, const int64_t* candidates, int64_t rows, int64_t hc, \
                                                 int64_t atoms, int64_t low, int64_t high, double* ss) {              \
        sparsefleet::scatter(pairs, candidates, rows, hc, atoms, low, high, ss);                                      \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                             \
    EXPORT int64_t linear_rows_##SUFFIX(                                                                              \
        T* scores, int64_t rows, int64_t atoms, int64_t padded, const T* gram, const T* values, int64_t levels,       \
        const T* own, const T* slope, const T* plain_own, const T* plain_slope, int64_t plain, const T* rule_own,     \
        const T* rule_slope, int64_t rules, double beta, const int32_t* begin, const int32_t* start,                  \
        const int32_t* parent, const int32_t* level, const int32_t* state, int64_t candidates, int64_t* chosen,       \
        int64_t given, const uint8_t* use, double* log_z, double* log_evidence, int64_t moments, T* pairs,            \
        double* counts, int64_t rows_per_piece, double* ss, int64_t threads) {                                        \
        const Tree tree = {candidates, levels, begin, start, parent, level, state};                                   \
        const Problem<T> p = {tree,      atoms,       padded,   rules,      values, gram,       own,          slope,  \
                              plain_own, plain_slope, rule_own, rule_slope, beta,   given != 0, moments != 0,         \
                              plain != 0};                                                                            \
        const int64_t states = start[candidates], nodes = begin[candidates];                                          \
        sparsefleet::for_rows(rows, rows_per_piece, threads, [&](int64_t first, int64_t last) {                       \
            const Rows<T> r = {scores, chosen, use, log_z, log_evidence, pairs,                                       \
                               counts + first / rows_per_piece * levels * atoms};                                     \
            linear_piece_##SUFFIX(p, r, sparsefleet::scratch<T>(Work<T>::size(p, states, nodes)), states, nodes,      \
                                  first, last);                                                                       \
        });                                                                                                           \
        if (moments && candidates > 1)                                                                                \
            sparsefleet::for_rows(atoms, (atoms + threads - 1) / threads, threads, [&](int64_t low, int64_t high) {   \
                linear_scatter_##SUFFIX(pairs, chosen, rows, candidates, atoms, low, high, ss);                       \
            });                                                                                                       \
        return 0;                                                                                                     \
    }
DEFINE(float, f32)
DEFINE(double, f64)
