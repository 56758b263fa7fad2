// min_a ½‖x - D a‖² + sum_j lambda_j |a_j| + ½ ridge ‖a‖² (optionally a >= 0) in the Gram domain, one signal at a time.
//
// Homotopy follows the exact solution of mu·lambda from the mu at which it is zero down to mu = 1: between two atoms that
// join or leave, the active coefficients move along w = (G_AA + ridge)^-1 (lambda sign)_A. Coordinate descent works on the
// small problem of an active set and looks at all atoms only between such problems. Whatever the way, the result is judged
// by the duality gap; where the path fails (ties, dependent atoms, too many non-zeros), descent goes on from where it was.
#include <cmath>
#include <vector>

#include "wide.h"

namespace {

using sparsefleet::Lanes;
using sparsefleet::Largest;
using sparsefleet::load;
using sparsefleet::store;
using sparsefleet::Vec;

enum Status : uint8_t { CONVERGED = 0, ZERO = 4, UNFINISHED = 5 };

// A penalty that no correlation reaches: keeps atoms that are active, or excluded, from joining.
constexpr double NEVER = 1e30;
// Squared distance to the span of the active atoms, relative to an atom's own length, below which it is left out.
constexpr double PIVOT = 1e-10;

template <class T>
struct Problem {
    int64_t atoms, most;  // most: active atoms that the path may have
    const T *gram, *lambda;
    double ridge, tolerance;
    int64_t sweeps;
    bool path;
};

template <class T>
struct Scratch {
    T *c, *v, *barred, *weight;
    std::vector<T>* small;  // grows with the active set: few signals need much
    T* g;
    double *factor, *forward, *w, *a;
    int32_t *active, *sign;
    uint8_t* member;
};

// One signal at work; its active atoms and their coefficients are the first `count` in scratch.
template <class T>
struct Signal {
    const T* b;
    double energy, target;
    int64_t count = 0;
    double error = 0;
};

// sum_i w_i G_i over the active atoms, handed on in tiles: many(u, x, sum) for vectors, one(x, sum) for single atoms.
template <class T, class Many, class One>
INLINE void combine(const Problem<T>& p, const int32_t* active, const T* w, int64_t t, Many many, One one) {
    using V = Vec<T>;
    constexpr int64_t lanes = Lanes<T>::count;
    int64_t x = 0;
    for (; x + 4 * lanes <= p.atoms; x += 4 * lanes) {
        V sum[4] = {};
        for (int64_t i = 0; i < t; i++) {
            const T* row = p.gram + active[i] * p.atoms + x;
            const T wi = w[i];
            for (int64_t u = 0; u < 4; u++) {
                V other;
                load(other, row + u * lanes);
                sum[u] += wi * other;
            }
        }
        for (int64_t u = 0; u < 4; u++) many(u, x + u * lanes, sum[u]);
    }
    for (; x < p.atoms; x++) {
        T sum = 0;
        for (int64_t i = 0; i < t; i++) sum += w[i] * p.gram[active[i] * p.atoms + x];
        one(x, sum);
    }
}

// The gradient's negative c = b - G a - ridge a for the coefficients at hand.
template <class T>
INLINE void correlate(const Problem<T>& p, const Signal<T>& y, const Scratch<T>& s) {
    using V = Vec<T>;
    for (int64_t i = 0; i < y.count; i++) s.weight[i] = T(s.a[i]);
    combine(
        p, s.active, s.weight, y.count,
        [&](int64_t, int64_t x, const V& sum) __attribute__((always_inline)) {
            V c;
            load(c, y.b + x);
            c -= sum;
            store(s.c + x, c);
        },
        [&](int64_t x, T sum) __attribute__((always_inline)) { s.c[x] = y.b[x] - sum; });
    for (int64_t i = 0; i < y.count; i++) s.c[s.active[i]] -= T(p.ridge * s.a[i]);
}

// |c_j| / lambda_j, one-sided where codes are non-negative, and the atom where it is largest.
template <class T, bool positive>
INLINE double steepest(const Problem<T>& p, const T* c, int64_t& at) {
    using V = Vec<T>;
    constexpr int64_t lanes = Lanes<T>::count;
    Largest<T> largest;
    int64_t x = 0;
    for (; x + 4 * lanes <= p.atoms; x += 4 * lanes)
        for (int64_t u = 0; u < 4; u++) {
            V here, lambda;
            load(here, c + x + u * lanes);
            load(lambda, p.lambda + x + u * lanes);
            if constexpr (!positive) here = here < 0 ? -here : here;
            largest.see(u, here / lambda, x + u * lanes);
        }
    for (; x < p.atoms; x++) largest.see_one((positive ? c[x] : std::abs(c[x])) / p.lambda[x], x);
    at = largest.find();
    const double ratio = double(c[at]) / p.lambda[at];
    return positive ? std::max(ratio, 0.0) : std::abs(ratio);
}

// Whether the duality gap is within the target; c must be up to date. Leaves the error ‖x - D a‖².
template <class T, bool positive>
INLINE bool settled(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s, double ratio) {
    double ab = 0, aga = 0, aa = 0, absolute = 0;
    for (int64_t i = 0; i < y.count; i++) {
        const int64_t j = s.active[i];
        const double a = T(s.a[i]);
        ab += a * y.b[j];
        aga += a * (double(y.b[j]) - s.c[j] - p.ridge * a);
        aa += p.ridge * a * a;
        absolute += std::abs(a) * p.lambda[j];
    }
    y.error = std::max(0.0, y.energy - 2 * ab + aga);
    const double square = y.error + aa, scale = ratio > 1 ? 1 / ratio : 1;
    return 0.5 * square + absolute - scale * (y.energy - ab) + 0.5 * scale * scale * square <= y.target;
}

// -- homotopy --------------------------------------------------------------------------------------------------------

// Row i of the Cholesky factor of G_AA + ridge; false where the atom depends on the active atoms before it.
template <class T>
INLINE bool extend(const Problem<T>& p, const Scratch<T>& s, int64_t i) {
    const int64_t j = s.active[i];
    const T* row = p.gram + j * p.atoms;
    double* own = s.factor + i * p.most;
    const double whole = row[j] + p.ridge;
    double pivot = whole, forward = double(s.sign[i]) * p.lambda[j];
    for (int64_t l = 0; l < i; l++) {
        const double* other = s.factor + l * p.most;
        double sum = row[s.active[l]];
        for (int64_t k = 0; k < l; k++) sum -= own[k] * other[k];
        own[l] = sum / other[l];
        pivot -= own[l] * own[l];
        forward -= own[l] * s.forward[l];
    }
    if (!(pivot > PIVOT * whole)) return false;
    own[i] = std::sqrt(pivot);
    s.forward[i] = forward / own[i];
    return true;
}

// w = (G_AA + ridge)^-1 right-hand side, whose forward substitution is given.
template <class T>
INLINE void back(const Problem<T>& p, const Scratch<T>& s, const double* forward, int64_t t, double* w) {
    for (int64_t i = 0; i < t; i++) w[i] = forward[i];
    for (int64_t i = t - 1; i >= 0; i--) {
        const double* row = s.factor + i * p.most;
        const double here = w[i] / row[i];
        w[i] = here;
        for (int64_t l = 0; l < i; l++) w[l] -= here * row[l];
    }
}

// c -= gamma v for the last step, then v = G w for the next, and the atom that its correlation brings to the bound first.
template <class T, bool positive>
INLINE int64_t follow(const Problem<T>& p, const Signal<T>& y, const Scratch<T>& s, T gamma, T mu) {
    using V = Vec<T>;
    constexpr T tiny = std::numeric_limits<T>::min();
    Largest<T> largest;
    // The rate at which the distance to the bound vanishes, per distance.
    auto rate = [&](const auto& c, const auto& v, const auto& lambda) __attribute__((always_inline)) {
        auto above = mu * lambda - c;
        above = above > tiny ? above : above - above + tiny;
        const auto up = (lambda - v) / above;
        if constexpr (positive) {
            return up;
        } else {
            auto below = mu * lambda + c;
            below = below > tiny ? below : below - below + tiny;
            const auto down = (lambda + v) / below;
            return up > down ? up : down;
        }
    };
    for (int64_t i = 0; i < y.count; i++) s.weight[i] = T(s.w[i]);
    combine(
        p, s.active, s.weight, y.count,
        [&](int64_t u, int64_t x, const V& sum) __attribute__((always_inline)) {
            V c, v, lambda;
            load(c, s.c + x);
            load(v, s.v + x);
            load(lambda, s.barred + x);
            c -= gamma * v;
            store(s.c + x, c);
            store(s.v + x, sum);
            largest.see(u, rate(c, sum, lambda), x);
        },
        [&](int64_t x, T sum) __attribute__((always_inline)) {
            s.c[x] -= gamma * s.v[x];
            s.v[x] = sum;
            largest.see_one(rate(s.c[x], sum, s.barred[x]), x);
        });
    return largest.find();
}

// Takes the i-th active atom out and brings the factor up to date.
template <class T>
INLINE void leave(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s, int64_t i) {
    y.count--;
    for (int64_t l = i; l < y.count; l++) {
        s.active[l] = s.active[l + 1];
        s.sign[l] = s.sign[l + 1];
        s.a[l] = s.a[l + 1];
    }
    for (int64_t l = i; l < y.count; l++) extend(p, s, l);
}

// Follows the path to mu = 1; leaves active atoms and coefficients. Whether they are right is for `settled` to say.
template <class T, bool positive>
INLINE void homotopy(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s, double mu, int64_t join) {
    const int64_t H = p.atoms;
    for (int64_t x = 0; x < H; x++) {
        s.c[x] = y.b[x];
        s.v[x] = 0;
        s.barred[x] = p.lambda[x];
    }
    T gamma = 0;
    int64_t excluded = -1;
    for (int64_t step = 0; mu > 1 && step < 8 * p.most + 16; step++) {
        if (join >= 0) {
            s.active[y.count] = int32_t(join);
            s.sign[y.count] = s.c[join] - gamma * s.v[join] < 0 ? -1 : 1;
            s.a[y.count] = 0;
            s.barred[join] = T(NEVER);
            if (extend(p, s, y.count)) y.count++;
        }
        back(p, s, s.forward, y.count, s.w);
        const int64_t next = follow<T, positive>(p, y, s, gamma, T(mu));
        if (excluded >= 0) {
            s.barred[excluded] = p.lambda[excluded];
            excluded = -1;
        }
        double least = mu - 1;
        join = -1;
        if (s.barred[next] < T(NEVER)) {
            const double c = s.c[next], v = s.v[next], lambda = s.barred[next];
            const double up = lambda > v ? std::max(0.0, mu * lambda - c) / (lambda - v) : NEVER;
            const double down = !positive && lambda + v > 0 ? std::max(0.0, mu * lambda + c) / (lambda + v) : NEVER;
            if (std::min(up, down) < least) {
                least = std::min(up, down);
                join = next;
            }
        }
        int64_t gone = -1;
        for (int64_t i = 0; i < y.count; i++)
            if (s.a[i] * s.w[i] < 0 && -s.a[i] / s.w[i] < least) {
                least = -s.a[i] / s.w[i];
                gone = i;
            }
        for (int64_t i = 0; i < y.count; i++) s.a[i] += least * s.w[i];
        gamma = T(least);
        mu -= least;
        if (gone >= 0) {
            join = -1;
            // Its correlation stays at the bound: only from the next step on can it be told whether it comes back.
            excluded = s.active[gone];
            leave(p, y, s, gone);
        }
        if (join >= 0 && y.count >= p.most) return;
        if (y.count == 0 && join < 0) return;
    }
    // The end point once more in one piece, without the rounding of the steps.
    for (int64_t i = 0; i < y.count; i++) {
        double sum = double(y.b[s.active[i]]) - double(s.sign[i]) * p.lambda[s.active[i]];
        for (int64_t l = 0; l < i; l++) sum -= s.factor[i * p.most + l] * s.forward[l];
        s.forward[i] = sum / s.factor[i * p.most + i];
    }
    back(p, s, s.forward, y.count, s.a);
}

// -- coordinate descent ----------------------------------------------------------------------------------------------

// Adds the atoms that violate their bound by at least half as much as the one that does most; drops those that are zero.
template <class T, bool positive>
INLINE void choose(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s, double ratio) {
    int64_t t = 0;
    for (int64_t i = 0; i < y.count; i++)
        if (s.a[i] != 0) {
            s.active[t] = s.active[i];
            s.a[t++] = s.a[i];
        }
    y.count = t;
    for (int64_t i = 0; i < t; i++) s.member[s.active[i]] = 1;
    const T bound = T(1 + 0.5 * (ratio - 1));
    for (int64_t x = 0; x < p.atoms; x++)
        if ((positive ? s.c[x] : std::abs(s.c[x])) >= bound * p.lambda[x] && ratio > 1 && !s.member[x]) {
            s.active[y.count] = int32_t(x);
            s.a[y.count++] = 0;
        }
    for (int64_t i = 0; i < t; i++) s.member[s.active[i]] = 0;
}

// Sweeps over the active atoms until no coefficient moves the fit by more than `least`; returns the sweeps left.
template <class T, bool positive>
INLINE int64_t descend(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s, double least, int64_t sweeps) {
    const int64_t t = y.count;
    if (int64_t(s.small->size()) < t * t) s.small->resize(t * t);
    T* small = s.small->data();
    for (int64_t i = 0; i < t; i++) {
        s.g[i] = s.c[s.active[i]];
        s.weight[i] = T(s.a[i]);
        for (int64_t l = 0; l < t; l++) small[i * t + l] = p.gram[s.active[i] * p.atoms + s.active[l]];
        small[i * t + i] += T(p.ridge);
    }
    double most = least + 1;
    while (most > least && sweeps > 0) {
        most = 0;
        sweeps--;
        for (int64_t i = 0; i < t; i++) {
            const T *row = small + i * t, own = row[i], old = s.weight[i], lambda = p.lambda[s.active[i]];
            if (!(own > 0)) continue;
            const T pull = s.g[i] + own * old;
            const T kept = (positive ? pull : std::abs(pull)) - lambda;
            const T now = kept > 0 ? (pull < 0 ? -kept : kept) / own : T(0);
            const T change = now - old;
            if (change == 0) continue;
            s.weight[i] = now;
            for (int64_t l = 0; l < t; l++) s.g[l] -= change * row[l];
            most = std::max(most, double(std::abs(change)) * std::sqrt(double(own)));
        }
    }
    for (int64_t i = 0; i < t; i++) s.a[i] = s.weight[i];
    return sweeps;
}

template <class T, bool positive>
INLINE bool descent(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s) {
    int64_t sweeps = p.sweeps, at = 0;
    double least = 0.03 * std::sqrt(2 * y.target);
    for (int64_t round = 0; round < p.sweeps; round++) {
        correlate(p, y, s);
        const double ratio = steepest<T, positive>(p, s.c, at);
        if (settled<T, positive>(p, y, s, ratio)) return true;
        if (sweeps == 0) return false;
        const int64_t before = y.count;
        choose<T, positive>(p, y, s, ratio);
        // Without new atoms the small problem was not solved well enough.
        if (y.count <= before) least *= 0.25;
        sweeps = descend<T, positive>(p, y, s, least, sweeps);
    }
    return false;
}

// -- one signal ------------------------------------------------------------------------------------------------------

// Its code into indices and values by ascending atom; returns how many entries it has.
template <class T>
INLINE int64_t write(const Signal<T>& y, const Scratch<T>& s, int32_t* indices, T* values) {
    int64_t count = 0;
    for (int64_t i = 0; i < y.count; i++) {
        if (T(s.a[i]) == 0) continue;
        int64_t at = count++;
        for (; at > 0 && indices[at - 1] > s.active[i]; at--) {
            indices[at] = indices[at - 1];
            values[at] = values[at - 1];
        }
        indices[at] = s.active[i];
        values[at] = T(s.a[i]);
    }
    return count;
}

template <class T, bool positive>
INLINE uint8_t solve(const Problem<T>& p, Signal<T>& y, const Scratch<T>& s) {
    y.error = y.energy;
    if (y.energy == 0) {
        y.count = 0;
        return ZERO;
    }
    int64_t at = 0;
    if (p.path) {
        y.count = 0;
        const double ratio = steepest<T, positive>(p, y.b, at);
        if (ratio <= 1) return CONVERGED;
        homotopy<T, positive>(p, y, s, ratio, at);
    }
    return descent<T, positive>(p, y, s) ? CONVERGED : UNFINISHED;
}

#define DEFINE(T, SUFFIX)                                                                                            \
    EVERY_PROCESSOR void lasso_rows_##SUFFIX(const Problem<T>& p, bool positive, const T* b, int64_t first,          \
                                             int64_t last, const T* energy, const int32_t* warm, const T* start,     \
                                             int64_t entries, const Scratch<T>& s, int32_t* indices, T* values,      \
                                             int64_t* counts, uint8_t* status, T* error) {                           \
        const int64_t H = p.atoms;                                                                                   \
        for (int64_t n = first; n < last; n++) {                                                                     \
            Signal<T> y{b + n * H, double(energy[n]), 0.5 * p.tolerance * energy[n], 0, 0.0};                        \
            for (int64_t i = 0; i < entries; i++)                                                                    \
                if (warm[n * entries + i] >= 0) {                                                                    \
                    s.active[y.count] = warm[n * entries + i];                                                       \
                    s.a[y.count++] = start[n * entries + i];                                                         \
                }                                                                                                    \
            status[n] = positive ? solve<T, true>(p, y, s) : solve<T, false>(p, y, s);                               \
            counts[n] = write(y, s, indices + n * H, values + n * H);                                                \
            error[n] = T(y.error);                                                                                   \
        }                                                                                                            \
    }
DEFINE(float, f32)
DEFINE(double, f64)
#undef DEFINE

}  // namespace

// b [rows, atoms] holds x·D; gram [atoms, atoms]; lambda [atoms]; warm and start [rows, entries], distinct atoms or -1;
// indices and values [rows, atoms], of which the first counts[n] are written.
#define DEFINE(T, SUFFIX)                                                                                            \
    EXPORT int64_t lasso_##SUFFIX(const T* b, int64_t rows, int64_t atoms, const T* gram, const T* lambda,           \
                                  const T* energy, double ridge, double tolerance, int64_t positive, int64_t path,   \
                                  int64_t most, int64_t sweeps, const int32_t* warm, const T* start,                 \
                                  int64_t entries, int32_t* indices, T* values, int64_t* counts, uint8_t* status,    \
                                  T* error, int64_t threads) {                                                       \
        const Problem<T> problem{atoms, most, gram, lambda, ridge, tolerance, sweeps, path != 0};                    \
        sparsefleet::for_rows(rows, 32, threads, [&](int64_t first, int64_t last) {                                  \
            thread_local std::vector<T> wide;                                                                        \
            thread_local std::vector<double> exact;                                                                  \
            thread_local std::vector<int32_t> places;                                                                \
            thread_local std::vector<uint8_t> member;                                                                \
            thread_local std::vector<T> small;                                                                       \
            wide.resize(5 * atoms + 64 / sizeof(T));                                                                 \
            exact.resize((most + 1) * (most + 1) + 2 * most + 2 + atoms);                                            \
            places.resize(2 * atoms + 2);                                                                            \
            member.assign(atoms, 0);                                                                                 \
            T* c = sparsefleet::aligned(wide.data());                                                                \
            double *forward = exact.data() + (most + 1) * (most + 1), *w = forward + most + 1;                       \
            const Scratch<T> scratch{c,                                                                              \
                                     c + atoms,                                                                      \
                                     c + 2 * atoms,                                                                  \
                                     c + 3 * atoms,                                                                  \
                                     &small,                                                                         \
                                     c + 4 * atoms,                                                                  \
                                     exact.data(),                                                                   \
                                     forward,                                                                        \
                                     w,                                                                              \
                                     w + most + 1,                                                                   \
                                     places.data(),                                                                  \
                                     places.data() + atoms + 1,                                                      \
                                     member.data()};                                                                 \
            lasso_rows_##SUFFIX(problem, positive != 0, b, first, last, energy, warm, start, entries, scratch,       \
                                indices, values, counts, status, error);                                             \
        });                                                                                                          \
        return 0;                                                                                                    \
    }
DEFINE(float, f32)
DEFINE(double, f64)
