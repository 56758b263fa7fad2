// Orthogonal matching pursuit in the Gram domain, one signal after another, everything it touches in the cache.
//
// For a signal with correlations alpha = b, step t picks the atom j of the largest |alpha_j| and forms q, the correlations
// of all atoms with the t-th orthonormal direction: q = (G_j - sum_i w_i q_i) / p with w_i = q_i[j], p² = G_jj - |w|².
// Then alpha -= rho q with rho = alpha_j / p lowers the squared error by rho². One pass over the atoms forms q, updates
// alpha and finds the next atom. The triangular factor [w; p] gives the coefficients at the end.
#include <cmath>
#include <type_traits>
#include <vector>

#include "wide.h"

namespace {

using sparsefleet::Lanes;
using sparsefleet::Largest;
using sparsefleet::load;
using sparsefleet::store;
using sparsefleet::Vec;

enum Status : uint8_t { CONVERGED, FULL, REACHED, DEPENDENT, ZERO };

// A unit atom closer than this (squared) to the span of those chosen counts as dependent.
constexpr double PIVOT = 1e-6;

template <class T>
struct Problem {
    int64_t atoms, steps;
    const T* gram;
    double silence, margin, least;
};

// How much choosing an atom would lower the error, up to monotone functions.
template <class T, bool ols, class V>
INLINE V score_of(const V& alpha, const V& room) {
    if constexpr (ols)
        return room > T(PIVOT) ? alpha * alpha / room : alpha - alpha;
    else
        return alpha < 0 ? -alpha : alpha;
}

template <class T, bool ols>
INLINE int64_t best(const T* alpha, const T* room, int64_t atoms) {
    using V = Vec<T>;
    constexpr int64_t lanes = Lanes<T>::count;
    Largest<T> largest;
    int64_t x = 0;
    for (; x + 4 * lanes <= atoms; x += 4 * lanes)
        for (int64_t u = 0; u < 4; u++) {
            V a, r = V{};
            load(a, alpha + x + u * lanes);
            if constexpr (ols) load(r, room + x + u * lanes);
            largest.see(u, score_of<T, ols, V>(a, r), x + u * lanes);
        }
    for (; x < atoms; x++) largest.see_one(score_of<T, ols, T>(alpha[x], ols ? room[x] : T(0)), x);
    return largest.find();
}

// Forms direction t from the row of G, updates alpha (and room), and returns the best atom of the next step.
template <class T, bool ols>
INLINE int64_t advance(const T* row, T* q, int64_t t, const T* w, T scale, T rho, int64_t atoms, T* alpha, T* room) {
    using V = Vec<T>;
    constexpr int64_t lanes = Lanes<T>::count;
    Largest<T> largest;
    T* out = q + t * atoms;
    int64_t x = 0;
    for (; x + 4 * lanes <= atoms; x += 4 * lanes) {
        V sum[4];
        for (int64_t u = 0; u < 4; u++) load(sum[u], row + x + u * lanes);
        for (int64_t i = 0; i < t; i++) {
            const T* qi = q + i * atoms + x;
            const T wi = w[i];
            for (int64_t u = 0; u < 4; u++) {
                V other;
                load(other, qi + u * lanes);
                sum[u] -= wi * other;
            }
        }
        for (int64_t u = 0; u < 4; u++) {
            V a, r = V{};
            load(a, alpha + x + u * lanes);
            sum[u] *= scale;
            a -= rho * sum[u];
            store(out + x + u * lanes, sum[u]);
            store(alpha + x + u * lanes, a);
            if constexpr (ols) {
                load(r, room + x + u * lanes);
                r -= sum[u] * sum[u];
                store(room + x + u * lanes, r);
            }
            largest.see(u, score_of<T, ols, V>(a, r), x + u * lanes);
        }
    }
    for (; x < atoms; x++) {
        T sum = row[x];
        for (int64_t i = 0; i < t; i++) sum -= w[i] * q[i * atoms + x];
        sum *= scale;
        out[x] = sum;
        alpha[x] -= rho * sum;
        if constexpr (ols) room[x] -= sum * sum;
        largest.see_one(score_of<T, ols, T>(alpha[x], ols ? room[x] : T(0)), x);
    }
    return largest.find();
}

// Chosen atoms keep rounding noise in alpha; only where one wins by it is the choice made again without them.
template <class T, bool ols>
INLINE int64_t unchosen(int64_t j, T* alpha, const T* room, int64_t atoms, const int32_t* chosen, int64_t t) {
    for (int64_t i = 0; i < t; i++)
        if (chosen[i] == j) {
            for (int64_t s = 0; s < t; s++) alpha[chosen[s]] = 0;
            return best<T, ols>(alpha, room, atoms);
        }
    return j;
}

template <class T>
struct Scratch {
    T *q, *room, *w;
    double *factor, *weights;
};

template <class T, bool ols>
INLINE void pursue(const Problem<T>& p, T* alpha, double energy, double allowed, const Scratch<T>& s, int32_t* indices,
                   T* values, uint8_t* status, T* error) {
    const int64_t H = p.atoms, k = p.steps;
    const double floor = p.silence * std::sqrt(energy);
    double left = energy;
    int64_t t = 0, j = 0;
    Status end = FULL;
    if constexpr (ols)
        for (int64_t x = 0; x < H; x++) s.room[x] = p.gram[x * H + x];
    if (energy == 0)
        end = ZERO;
    else if (energy <= allowed)
        end = REACHED;
    else
        j = best<T, ols>(alpha, s.room, H);
    while (end == FULL && t < k) {
        const T* row = p.gram + j * H;
        if (!(std::abs(double(alpha[j])) > floor)) {
            end = CONVERGED;
            break;
        }
        double pivot = row[j];
        for (int64_t i = 0; i < t; i++) {
            s.w[i] = s.q[i * H + j];
            pivot -= double(s.w[i]) * s.w[i];
            s.factor[i * k + t] = s.w[i];
        }
        if (!(pivot > PIVOT)) {
            end = DEPENDENT;
            break;
        }
        const double root = std::sqrt(pivot), rho = alpha[j] / root;
        if (rho * rho < p.least) {
            end = CONVERGED;
            break;
        }
        s.factor[t * k + t] = root;
        s.weights[t] = rho;
        indices[t] = int32_t(j);
        left -= rho * rho;
        t++;
        if (left <= allowed - p.margin * energy)
            end = REACHED;
        else if (t < k) {
            j = advance<T, ols>(row, s.q, t - 1, s.w, T(1 / root), T(rho), H, alpha, s.room);
            j = unchosen<T, ols>(j, alpha, s.room, H, indices, t);
        }
    }
    for (int64_t i = t - 1; i >= 0; i--) {
        double c = s.weights[i];
        for (int64_t l = i + 1; l < t; l++) c -= s.factor[i * k + l] * s.weights[l];
        s.weights[i] = c / s.factor[i * k + i];
        values[i] = T(s.weights[i]);
    }
    for (int64_t i = t; i < k; i++) {
        indices[i] = -1;
        values[i] = 0;
    }
    *status = end;
    *error = T(left > 0 ? left : 0);
}

#define DEFINE(T, SUFFIX)                                                                                            \
    EVERY_PROCESSOR void omp_rows_##SUFFIX(const Problem<T>& p, bool ols, T* alpha, int64_t first, int64_t last,     \
                                           const T* energy, const T* allowed, const Scratch<T>& s,                   \
                                           int32_t* indices, T* values, uint8_t* status, T* error) {                 \
        const int64_t H = p.atoms, k = p.steps;                                                                      \
        for (int64_t n = first; n < last; n++) {                                                                     \
            if (ols)                                                                                                 \
                pursue<T, true>(p, alpha + n * H, energy[n], allowed[n], s, indices + n * k, values + n * k,         \
                                status + n, error + n);                                                              \
            else                                                                                                     \
                pursue<T, false>(p, alpha + n * H, energy[n], allowed[n], s, indices + n * k, values + n * k,        \
                                 status + n, error + n);                                                             \
        }                                                                                                            \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

// alpha [rows, atoms] holds x·D and is overwritten; gram [atoms, atoms]; indices and values [rows, steps].
#define DEFINE(T, SUFFIX)                                                                                            \
    EXPORT int64_t omp_##SUFFIX(T* alpha, int64_t rows, int64_t atoms, int64_t steps, const T* gram,                 \
                                const T* energy, const T* allowed, double silence, double margin, double least,        \
                                int64_t ols, int32_t* indices, T* values, uint8_t* status, T* error,                 \
                                int64_t threads) {                                                                   \
        const Problem<T> problem{atoms, steps, gram, silence, margin, least};                                        \
        sparsefleet::for_rows(rows, 32, threads, [&](int64_t first, int64_t last) {                                  \
            thread_local std::vector<T> wide;                                                                        \
            thread_local std::vector<double> exact;                                                                  \
            wide.resize((steps + 1) * atoms + steps + 64 / sizeof(T));                                               \
            exact.resize(steps * (steps + 1));                                                                       \
            T* q = sparsefleet::aligned(wide.data());                                                                \
            T* room = q + steps * atoms;                                                                             \
            const Scratch<T> scratch{q, room, room + atoms, exact.data(), exact.data() + steps * steps};             \
            omp_rows_##SUFFIX(problem, ols != 0, alpha, first, last, energy, allowed, scratch, indices, values,      \
                              status, error);                                                                        \
        });                                                                                                          \
        return 0;                                                                                                    \
    }
DEFINE(float, f32)
DEFINE(double, f64)
