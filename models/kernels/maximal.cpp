// Truncated posteriors of models that superpose atoms by a maximum, and the share of each atom in it.
//
// Dimensions lie along the lanes. Per row and vector of dimensions, every state is a smaller one and one more candidate
// (`Tree` as in linear.cpp, one level), and the same steps backwards share a state's probability out to its atoms. All
// that is kept of a state is its squared error.
#include <cmath>
#include <cstring>

#include "native.h"
#include "selection.h"
#include "vectors.h"

namespace {

using sparsefleet::Lanes;
using sparsefleet::Vec;

enum Kind { EXACT, TIED, SMOOTH };

template <class T>
struct Problem {
    int64_t dim, atoms, wide, padded, candidates, states;
    const int32_t *begin, *start, *parent, *last, *state, *size;
    const T* weights;     // [H, wide] Wᵀ
    const T* logs;        // [H, wide] log |W|
    const T* energy;      // [H] ‖W_h‖²
    const T* rank_scale;  // [H] candidates are the largest of scale · (overshoot or score) + shift
    const T* rank_shift;  // [H]
    double rho, precision, logit, beta, heat;
    bool is_signed, given, moments, plain;
};

template <class T>
struct Rows {
    const T* x;            // [n, D]
    T* scores;             // [n, H] Wᵀy; becomes the probabilities of the singletons (of any state with the atom)
    int64_t* candidates;   // [n, H']
    const uint8_t* use;    // [n]
    double *square, *log_z, *log_evidence, *residual, *active;  // [n]
    T* shares;             // [n, H', wide] Σ q A
    bool marginals;
};

template <class T>
struct Work {
    Vec<T>*y, *error, *value, *given, *count, *atom, *own, *share, *joint, *plain, *single, *rank;
    static size_t size(const Problem<T>& p) {
        const int64_t w = Lanes<T>::count;
        return p.wide / w + 4 * p.states + 3 * p.candidates + 2 * (p.states / w + 1) + 2 * (p.padded / w);
    }
    Work(Vec<T>* at, const Problem<T>& p) {
        const int64_t w = Lanes<T>::count;
        auto take = [&](int64_t n) { return (at += n) - n; };
        y = take(p.wide / w);
        error = take(p.states), value = take(p.states), given = take(p.states), count = take(p.states);
        atom = take(p.candidates), own = take(p.candidates), share = take(p.candidates);
        joint = take(p.states / w + 1), plain = take(p.states / w + 1);
        single = take(p.padded / w), rank = take(p.padded / w);
    }
};

template <class T>
INLINE Vec<T> magnitude(const Vec<T>& v) {
    return v < T(0) ? -v : v;
}

// The candidates' atoms in vector d; smoothed: their powers relative to the largest magnitude, which is returned.
template <class T>
INLINE Vec<T> atoms_at(const Problem<T>& p, const Work<T>& w, const int64_t* chosen, int64_t d, bool smooth) {
    const int64_t width = p.wide / Lanes<T>::count;
    Vec<T> top = {}, log_top = Vec<T>{} - T(1e30);
    for (int64_t j = 0; j < p.candidates; j++) {
        w.atom[j] = reinterpret_cast<const Vec<T>*>(p.weights)[chosen[j] * width + d];
        if (!smooth) continue;
        w.own[j] = reinterpret_cast<const Vec<T>*>(p.logs)[chosen[j] * width + d];
        sparsefleet::larger<T>(top, magnitude<T>(w.atom[j]));
        sparsefleet::larger<T>(log_top, w.own[j]);
    }
    for (int64_t j = 0; smooth && j < p.candidates; j++) {
        const Vec<T> log = w.own[j] - log_top;
        Vec<T> power = log * T(p.rho);
        sparsefleet::exponential<T>(power);
        w.own[j] = log * T(p.rho - 1);
        sparsefleet::exponential<T>(w.own[j]);
        w.atom[j] = w.atom[j] < T(0) ? -power : power;
    }
    return top;
}

// |sum|^(1/ρ).
template <class T>
INLINE Vec<T> rooted(const Vec<T>& total, T inverse_rho) {
    Vec<T> v = magnitude<T>(total);
    sparsefleet::logarithm<T>(v);
    v *= inverse_rho;
    sparsefleet::exponential<T>(v);
    return v;
}

// Values of all states in a vector of dimensions (sums of powers where smoothed); adds up squared errors where wanted.
template <class T, int KIND, bool SIGNED, bool ERRORS>
INLINE void forward(const Problem<T>& p, const Work<T>& w, const Vec<T>& y, const Vec<T>& top) {
    const T inverse_rho = KIND == SMOOTH ? T(1 / p.rho) : T(1);
    for (int64_t h = 0; h < p.candidates; h++) {
        const int64_t first = p.start[h];
        const Vec<T> atom = w.atom[h], size = SIGNED ? magnitude<T>(atom) : atom;
        w.value[first] = atom;
        if (KIND == TIED) w.count[first] = Vec<T>{} + T(1);
        for (int64_t k = 1; k < p.begin[h]; k++) {
            const Vec<T> parent = w.value[p.state[k]];
            Vec<T> value;
            if (KIND == SMOOTH) {
                value = parent + atom;
            } else if (SIGNED) {
                value = magnitude<T>(parent) >= size ? parent : atom;
            } else {
                value = parent >= atom ? parent : atom;
            }
            w.value[first + k] = value;
            if (KIND == TIED) {
                const Vec<T> held = w.count[p.state[k]], before = SIGNED ? magnitude<T>(parent) : parent;
                w.count[first + k] = before > size ? held : before < size ? Vec<T>{} + T(1) : held + T(1);
            }
            if (!ERRORS) continue;
            if (KIND == SMOOTH) {
                const Vec<T> root = rooted<T>(value, inverse_rho) * top;
                value = SIGNED ? (value < T(0) ? -root : root) : root;
            }
            const Vec<T> error = y - value;
            w.error[first + k] += error * error;
        }
    }
}

// Shares of the candidates in a vector of dimensions from the states' probabilities `q`, which `forward` prepared.
template <class T, int KIND, bool SIGNED>
INLINE void backward(const Problem<T>& p, const Work<T>& w, const T* q) {
    for (int64_t h = 0; h < p.candidates; h++) {
        const int64_t first = p.start[h];
        w.share[h] = w.given[first] = Vec<T>{};
        for (int64_t k = 1; k < p.begin[h]; k++) {
            const int64_t s = first + k;
            Vec<T> weight = Vec<T>{} + q[s];
            if (KIND == TIED) weight /= w.count[s];
            if (KIND == SMOOTH) {
                // Sums of either sign may cancel.
                Vec<T> size = magnitude<T>(w.value[s]);
                sparsefleet::larger<T>(size, Vec<T>{} + Lanes<T>::tiny);
                weight *= rooted<T>(size, T(1 / p.rho)) / size;
            }
            w.given[s] = weight;
        }
    }
    for (int64_t h = p.candidates - 1; h >= 0; h--) {
        const int64_t first = p.start[h];
        const Vec<T> zero = {}, atom = w.atom[h], size = SIGNED ? magnitude<T>(atom) : atom;
        Vec<T> share = w.given[first];
        for (int64_t k = p.begin[h] - 1; k >= 1; k--) {
            const Vec<T> passed = w.given[first + k];
            Vec<T>& to = w.given[p.state[k]];
            if (KIND == SMOOTH) {
                share += passed;
                to += passed;
            } else {
                const Vec<T> parent = w.value[p.state[k]], before = SIGNED ? magnitude<T>(parent) : parent;
                share += size >= before ? passed : zero;
                to += size <= before ? passed : zero;
            }
        }
        w.share[h] = KIND == SMOOTH ? share * w.own[h] : share;
    }
}

// The same where sums of either sign may cancel, so that each atom's share of a state is cut at 1.
template <class T>
INLINE void backward_cut(const Problem<T>& p, const Work<T>& w, const T* q) {
    for (int64_t h = 0; h < p.candidates; h++) w.share[h] = Vec<T>{};
    for (int64_t h = 0; h < p.candidates; h++)
        for (int64_t k = 1; k < p.begin[h]; k++) {
            const int64_t s = p.start[h] + k;
            Vec<T> size = magnitude<T>(w.value[s]);
            sparsefleet::larger<T>(size, Vec<T>{} + Lanes<T>::tiny);
            const Vec<T> inverse = rooted<T>(size, T(1 / p.rho)) / size, one = Vec<T>{} + T(1);
            int64_t at = k;
            for (int64_t j = h;; j = p.last[at], at = p.parent[at]) {
                const Vec<T> part = w.own[j] * inverse;
                w.share[j] += q[s] * (part > one ? one : part);
                if (at == 0) break;
            }
        }
}

// Whether two candidates have the same magnitude in a dimension of this vector.
template <class T>
INLINE bool tied(const Problem<T>& p, const Work<T>& w, int64_t d) {
    typename Lanes<T>::I found = {};
    for (int64_t i = 0; i < p.candidates; i++)
        for (int64_t j = 0; j < i; j++) found |= magnitude<T>(w.atom[i]) == magnitude<T>(w.atom[j]);
    for (int64_t lane = 0; lane < std::min(Lanes<T>::count, p.dim - d * Lanes<T>::count); lane++)
        if (found[lane]) return true;
    return false;
}

template <class T>
INLINE void choose(const Problem<T>& p, const Work<T>& w, const T* scores, int64_t* chosen) {
    const int64_t width = p.wide / Lanes<T>::count;
    T *rank = reinterpret_cast<T*>(w.rank), *held = reinterpret_cast<T*>(w.share);
    for (int64_t h = 0; h < p.atoms; h++) {
        T value = scores[h];
        if (!p.is_signed) {
            const Vec<T>* atom = reinterpret_cast<const Vec<T>*>(p.weights) + h * width;
            Vec<T> over = {};
            const Vec<T> zero = {};
            // Beyond D both are 0.
            for (int64_t d = 0; d < width; d++) over += atom[d] > w.y[d] ? atom[d] - w.y[d] : zero;
            value = sparsefleet::sum<T>(over);
        }
        rank[h] = p.rank_scale[h] * value + p.rank_shift[h];
    }
    sparsefleet::top_k_row(rank, p.atoms, p.candidates, held, chosen);
}

// exp(joints - top) and their sum; joints of the states and of the singletons (`single`), the empty one's is 0.
template <class T>
INLINE T weigh(const Problem<T>& p, Vec<T>* joint, Vec<T>* single, T& top) {
    const int64_t states = p.states / Lanes<T>::count + 1, singles = p.padded / Lanes<T>::count;
    Vec<T> most = {}, total = {};
    for (int64_t s = 0; s < states; s++) sparsefleet::larger<T>(most, joint[s]);
    for (int64_t s = 0; s < singles; s++) sparsefleet::larger<T>(most, single[s]);
    top = sparsefleet::largest<T>(most);
    for (int64_t s = 0; s < states; s++) {
        joint[s] -= top;
        // What is no state of several atoms has no weight at all.
        const auto none = joint[s] < T(-1e29);
        sparsefleet::exponential<T>(joint[s]);
        joint[s] = none ? Vec<T>{} : joint[s];
        total += joint[s];
    }
    for (int64_t s = 0; s < singles; s++) {
        single[s] -= top;
        const auto none = single[s] < T(-1e29);
        sparsefleet::exponential<T>(single[s]);
        single[s] = none ? Vec<T>{} : single[s];
        total += single[s];
    }
    Vec<T> empty = Vec<T>{} - top;
    sparsefleet::exponential<T>(empty);
    return sparsefleet::sum<T>(total) + empty[0];
}

// Joints at temperatures β (likelihood) and heat (prior) of all states but the empty one.
template <class T>
INLINE void joints(const Problem<T>& p, const Work<T>& w, const T* error, const T* scores, T square, double beta,
                   double heat, Vec<T>* joint) {
    T *flat = reinterpret_cast<T*>(joint), *single = reinterpret_cast<T*>(w.single);
    const T factor = T(beta * p.precision / 2), odds = T(p.logit * heat);
    for (int64_t s = 0; s < (p.states / Lanes<T>::count + 1) * Lanes<T>::count; s++) flat[s] = T(-1e30);
    for (int64_t h = 0; h < p.candidates; h++)
        for (int64_t s = p.start[h] + 1; s < p.start[h + 1]; s++)
            flat[s] = (square - error[s]) * factor + T(p.size[s]) * odds;
    for (int64_t h = 0; h < p.padded; h++)
        single[h] = h < p.atoms ? (2 * scores[h] - p.energy[h]) * factor + odds : T(-1e30);
}

template <class T>
INLINE void row(const Problem<T>& p, const Rows<T>& r, const Work<T>& w, int64_t n) {
    const int64_t width = p.wide / Lanes<T>::count;
    const bool smooth = p.rho > 0;
    int64_t* chosen = r.candidates + n * p.candidates;
    T* scores = r.scores + n * p.atoms;
    w.y[width - 1] = Vec<T>{};
    std::memcpy(w.y, r.x + n * p.dim, p.dim * sizeof(T));
    Vec<T> squares = {};
    for (int64_t d = 0; d < width; d++) squares += w.y[d] * w.y[d];
    const T square = sparsefleet::sum<T>(squares);
    if (!p.given) choose(p, w, scores, chosen);

    std::memset(w.error, 0, p.states * sizeof(Vec<T>));
    for (int64_t d = 0; d < width && p.states > p.candidates + 1; d++) {
        const Vec<T> top = atoms_at(p, w, chosen, d, smooth);
        if (smooth && p.is_signed)
            forward<T, SMOOTH, true, true>(p, w, w.y[d], top);
        else if (smooth)
            forward<T, SMOOTH, false, true>(p, w, w.y[d], top);
        else if (p.is_signed)
            forward<T, EXACT, true, true>(p, w, w.y[d], top);
        else
            forward<T, EXACT, false, true>(p, w, w.y[d], top);
    }
    T* error = reinterpret_cast<T*>(w.error);
    // Sums of vectors take the place of the vectors before them.
    for (int64_t s = 0; s < p.states; s++) error[s] = sparsefleet::sum<T>(w.error[s]);

    T top;
    if (p.plain) {
        joints(p, w, error, scores, square, 1.0, 1.0, w.plain);
        const T total = weigh(p, w.plain, w.single, top);
        r.log_evidence[n] = double(top) + std::log(double(total));
    }
    joints(p, w, error, scores, square, p.beta, p.heat, w.joint);
    const T total = weigh(p, w.joint, w.single, top);
    r.log_z[n] = double(top) + std::log(double(total));
    if (!p.plain) r.log_evidence[n] = r.log_z[n];
    r.square[n] = square;
    if (!p.moments) return;

    const T inverse = r.use[n] ? T(1) / total : T(0);
    T *q = reinterpret_cast<T*>(w.joint), *single = reinterpret_cast<T*>(w.single);
    double residual = std::exp(-double(top)) * inverse * square, active = 0;
    for (int64_t h = 0; h < p.atoms; h++) {
        single[h] *= inverse;
        residual += single[h] * std::max(square - 2 * scores[h] + p.energy[h], T(0));
        active += single[h];
        scores[h] = single[h];
    }
    for (int64_t s = 0; s < p.states; s++) {
        q[s] *= inverse;
        residual += q[s] * error[s];
        active += q[s] * p.size[s];
    }
    r.residual[n] = residual;
    r.active[n] = active;
    if (r.marginals) {
        for (int64_t h = 0; h < p.candidates; h++)
            for (int64_t k = 1; k < p.begin[h]; k++) {
                int64_t at = k;
                for (int64_t j = h;; j = p.last[at], at = p.parent[at]) {
                    scores[chosen[j]] += q[p.start[h] + k];
                    if (at == 0) break;
                }
            }
        return;
    }
    for (int64_t d = 0; d < width; d++) {
        const Vec<T> most = atoms_at(p, w, chosen, d, smooth);
        if (smooth && p.is_signed) {
            forward<T, SMOOTH, true, false>(p, w, w.y[d], most);
            backward_cut(p, w, q);
        } else if (smooth) {
            forward<T, SMOOTH, false, false>(p, w, w.y[d], most);
            backward<T, SMOOTH, false>(p, w, q);
        } else if (tied(p, w, d)) {
            if (p.is_signed) {
                forward<T, TIED, true, false>(p, w, w.y[d], most);
                backward<T, TIED, true>(p, w, q);
            } else {
                forward<T, TIED, false, false>(p, w, w.y[d], most);
                backward<T, TIED, false>(p, w, q);
            }
        } else if (p.is_signed) {
            forward<T, EXACT, true, false>(p, w, w.y[d], most);
            backward<T, EXACT, true>(p, w, q);
        } else {
            forward<T, EXACT, false, false>(p, w, w.y[d], most);
            backward<T, EXACT, false>(p, w, q);
        }
        for (int64_t j = 0; j < p.candidates; j++)
            std::memcpy(r.shares + (n * p.candidates + j) * p.wide + d * Lanes<T>::count, w.share + j, sizeof(Vec<T>));
    }
}

// Σ of shares and of shares times the data into a[h] and ay[h], [D] each, of those atoms h in [low, high).
template <class T>
INLINE void scatter(const Problem<T>& p, const Rows<T>& r, int64_t rows, int64_t low, int64_t high, double* a,
                    double* ay) {
    for (int64_t n = 0; n < rows; n++) {
        if (!r.use[n]) continue;
        for (int64_t j = 0; j < p.candidates; j++) {
            const int64_t h = r.candidates[n * p.candidates + j];
            if (h < low || h >= high) continue;
            const T* __restrict__ share = r.shares + (n * p.candidates + j) * p.wide;
            const T* __restrict__ y = r.x + n * p.dim;
            double *__restrict__ total = a + h * p.dim, *__restrict__ product = ay + h * p.dim;
#pragma omp simd
            for (int64_t d = 0; d < p.dim; d++) {
                total[d] += double(share[d]);
                product[d] += double(share[d] * y[d]);
            }
        }
    }
}

#define DEFINE(T, SUFFIX)                                                                                             \
    EVERY_PROCESSOR void maximal_piece_##SUFFIX(const Problem<T>& p, const Rows<T>& r, Vec<T>* memory, int64_t first, \
                                                int64_t last) {                                                       \
        const Work<T> work(memory, p);                                                                                \
        for (int64_t n = first; n < last; n++) row(p, r, work, n);                                                    \
    }                                                                                                                 \
    EVERY_PROCESSOR void maximal_scatter_##SUFFIX(const Problem<T>& p, const Rows<T>& r, int64_t rows, int64_t low,   \
                                                  int64_t high, double* a, double* ay) {                              \
        scatter(p, r, rows, low, high, a, ay);                                                                        \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

#define DEFINE(T, SUFFIX)                                                                                             \
    EXPORT int64_t maximal_rows_##SUFFIX(                                                                             \
        const T* x, int64_t rows, int64_t dim, int64_t atoms, int64_t wide, int64_t padded, int64_t candidates,       \
        const int32_t* begin, const int32_t* start, const int32_t* parent, const int32_t* last, const int32_t* state, \
        const int32_t* size, const T* weights, const T* logs, const T* energy, const T* rank_scale,                   \
        const T* rank_shift, double rho, double precision, double logit, double beta, double heat,                    \
        int64_t is_signed, int64_t plain, T* scores, int64_t* chosen, int64_t given,                                  \
        const uint8_t* use, double* square, double* log_z, double* log_evidence, double* residual, double* active,    \
        int64_t moments, int64_t marginals, T* shares, double* a, double* ay, int64_t threads) {                      \
        const Problem<T> p = {dim,     atoms,     wide,   padded,     candidates, start[candidates],                  \
                              begin,   start,     parent, last,       state,      size,              weights,         \
                              logs,    energy,    rank_scale, rank_shift, rho,    precision,         logit,           \
                              beta,    heat,      is_signed != 0, given != 0, moments != 0, plain != 0};              \
        const Rows<T> r = {x,     scores,       chosen,   use,    square, log_z,                                      \
                           log_evidence, residual, active, shares, marginals != 0};                                   \
        sparsefleet::for_rows(rows, 16, threads, [&](int64_t first, int64_t end) {                                    \
            maximal_piece_##SUFFIX(p, r, sparsefleet::scratch<T>(Work<T>::size(p)), first, end);                      \
        });                                                                                                           \
        if (moments && !marginals)                                                                                    \
            sparsefleet::for_rows(atoms, (atoms + threads - 1) / threads, threads, [&](int64_t low, int64_t high) {   \
                maximal_scatter_##SUFFIX(p, r, rows, low, high, a, ay);                                               \
            });                                                                                                       \
        return 0;                                                                                                     \
    }
DEFINE(float, f32)
DEFINE(double, f64)
