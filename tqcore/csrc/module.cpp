// Python bindings: arrays in, arrays out; every long call releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "aligned.h"
#include "encode.h"
#include "int64_map.h"
#include "packing.h"
#include "parallel.h"
#include "query_tables.h"
#include "search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using InOut = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<nb::numpy>;
template <class T>
using Optional = std::optional<In<T, 1>>;

template <class T>
struct Array {
    explicit Array(std::initializer_list<size_t> shape) : shape(shape) {
        size_t n = 1;
        for (const size_t s : shape) n *= s;
        data = new T[n ? n : 1];
    }
    nb::ndarray<nb::numpy, T> take() {
        nb::capsule owner(data, [](void* p) noexcept { delete[] (T*)p; });
        return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner);
    }
    std::vector<size_t> shape;
    T* data;
};

nb::ndarray<nb::numpy, int64_t> copied(const std::vector<int64_t>& values) {
    Array<int64_t> out({values.size()});
    std::copy(values.begin(), values.end(), out.data);
    return out.take();
}

void check(bool ok, const char* message) {
    if (!ok) throw nb::value_error(message);
}

// One row is never divided, so the system need not be asked.
int threads_or_default(int threads, size_t rows = 2) {
    return threads > 0 ? threads : rows < 2 ? 1 : tq::default_threads();
}

tq::RotationView rotation_view(const In<float, 3>& signs) {
    check(signs.shape(1) == 2, "signs: shape must be [rounds, 2, d]");
    return {(int)signs.shape(2), (int)signs.shape(0), signs.data()};
}


tq::Code make_chain(int d, int p, int q, const In<float, 3>& tables) {
    check(d >= 1 && p >= 1 && q >= 1, "d, p and q must be positive");
    check((int)tables.shape(0) == q && tables.shape(1) >= 1 && tables.shape(1) <= tq::kMaxMemory &&
              tables.shape(2) == 16,
          "tables: shape must be [q, memory, 16] with memory 1 to 3");
    tq::Code code;
    code.add_chain(std::make_shared<tq::Chain>(d, p, q, (int)tables.shape(1), tables.data()));
    return code;
}

tq::Code join(const std::vector<tq::Code>& codes, int head_words) {
    tq::Code out;
    for (const tq::Code& c : codes) {
        check(c.scannable(), "only chain codes can be joined");
        for (const tq::Part& p : c.parts) out.add_chain(p.chain);
    }
    check(head_words >= 0 && head_words < std::max(1, out.words()), "head_words: must be fewer than the words of a row");
    out.head_words = head_words;
    return out;
}

tq::Code make_scalar(int d, int bits, const In<float, 1>& centroids) {
    check(d >= 1 && bits >= 1 && bits <= 8 && centroids.shape(0) == size_t(1) << bits,
          "centroids: length must be 2**bits, bits 1 to 8");
    tq::Code code;
    code.set_scalar(std::make_shared<tq::Scalar>(d, bits, centroids.data()));
    return code;
}

tq::Code with_signs(tq::Code code, int d) {
    check(code.parts.empty() && !code.signs && (code.d == 0 || code.d == d),
          "signs follow a scalar code of the same d, or nothing");
    code.d = d;
    code.add_signs();
    return code;
}

nb::tuple normalize(const In<float, 2>& x, int threads) {
    Array<float> y({x.shape(0), x.shape(1)});
    Array<double> norms({x.shape(0)});
    {
        nb::gil_scoped_release release;
        tq::normalize_rows(x.data(), x.shape(0), (int)x.shape(1), y.data, norms.data, threads_or_default(threads));
    }
    return nb::make_tuple(y.take(), norms.take());
}

int64_t first_unfit(const In<float, 2>& x, int threads) {
    nb::gil_scoped_release release;
    return tq::first_unfit(x.data(), x.shape(0), (int)x.shape(1), threads_or_default(threads, x.shape(0)));
}

auto row_dots(const In<float, 2>& x, const In<float, 2>& y, int threads) {
    check(x.shape(0) == y.shape(0) && x.shape(1) == y.shape(1), "x and y must have one shape");
    Array<double> out({x.shape(0)});
    {
        nb::gil_scoped_release release;
        tq::row_dots(x.data(), y.data(), x.shape(0), (int)x.shape(1), out.data, threads_or_default(threads));
    }
    return out.take();
}

auto hadamard_rotate(const In<float, 2>& y, const In<float, 3>& signs, bool inverse, int threads) {
    const tq::RotationView r = rotation_view(signs);
    check((int)y.shape(1) == r.d, "y: columns must equal the rotation's d");
    Array<float> out({y.shape(0), y.shape(1)});
    {
        nb::gil_scoped_release release;
        tq::rotate_rows(r, y.data(), y.shape(0), out.data, inverse, threads_or_default(threads));
    }
    return out.take();
}

auto project(const In<float, 2>& x, const In<float, 2>& matrix, int threads) {
    check(x.shape(1) == matrix.shape(0), "x: columns must equal the rows of matrix");
    Array<float> out({x.shape(0), matrix.shape(1)});
    {
        nb::gil_scoped_release release;
        tq::project_rows(x.data(), x.shape(0), (int)x.shape(1), matrix.data(), (int)matrix.shape(1), out.data,
                         threads_or_default(threads));
    }
    return out.take();
}

nb::tuple encode(const tq::Code& code, const In<float, 2>& x, const std::optional<In<float, 3>>& signs, int threads) {
    check((int)x.shape(1) == code.d, "x: columns must equal the code's d");
    check(!code.signs, "sign bits are not encoded here");
    const size_t n = x.shape(0);
    Array<uint8_t> codes({n, (size_t)code.code_size});
    Array<double> dots({n, code.parts.size() > 1 ? code.parts.size() : 1}), norms({n});
    tq::RotationView r{};
    if (signs) {
        r = rotation_view(*signs);
        check(r.d == code.d, "signs: last axis must equal the code's d");
    }
    std::memset(norms.data, 0, n * sizeof(double));
    {
        nb::gil_scoped_release release;
        tq::encode_rows(code, signs ? &r : nullptr, x.data(), n, codes.data, dots.data, norms.data,
                        threads_or_default(threads));
    }
    return nb::make_tuple(codes.take(), dots.take(), norms.take());
}

// The same with scalars in the place of dots and norms, and whether all of them are finite.
nb::tuple encode_scaled(const tq::Code& code, const In<float, 2>& x, const In<float, 3>& signs, bool unit,
                        bool unbiased, bool store_norm, int threads) {
    const tq::RotationView r = rotation_view(signs);
    check((int)x.shape(1) == code.d && r.d == code.d, "x and signs: last axes must equal the code's d");
    check(!code.signs, "sign bits are not encoded here");
    const size_t n = x.shape(0), n_dots = code.parts.size() > 1 ? code.parts.size() : 1;
    Array<uint8_t> codes({n, (size_t)code.code_size});
    Array<float> scalars({n, store_norm ? size_t(2) : size_t(1)});
    bool finite;
    {
        nb::gil_scoped_release release;
        std::vector<double> dots(n * n_dots), norms(n);
        tq::encode_rows(code, &r, x.data(), n, codes.data, dots.data(), norms.data(),
                        threads_or_default(threads, n));
        finite = tq::scalars_of({unit, unbiased, store_norm}, code.d, norms.data(), dots.data(), (int)n_dots, n,
                                scalars.data);
    }
    return nb::make_tuple(codes.take(), scalars.take(), finite);
}

auto decode(const tq::Code& code, const In<uint8_t, 2>& codes, int threads) {
    check((int)codes.shape(1) == code.code_size, "codes: columns must equal the code size");
    Array<float> y({codes.shape(0), (size_t)code.query_size()});
    {
        nb::gil_scoped_release release;
        tq::decode_rows(code, codes.data(), codes.shape(0), y.data, threads_or_default(threads));
    }
    return y.take();
}

auto lut(const tq::Code& code, const In<float, 2>& q) {
    check(code.scannable() && code.parts.size() == 1, "lut: only single chain codes have nibble tables");
    check((int)q.shape(1) == code.d, "q: columns must equal the code's d");
    const tq::ChainView& c = code.parts[0].chain->view();
    Array<float> out({q.shape(0), (size_t)c.n_nibbles, 16});
    std::vector<double> row((size_t)c.n_nibbles * 16);
    for (size_t i = 0; i < q.shape(0); ++i) {
        tq::kernels()->chain_lut(&c, q.data() + i * code.d, row.data());
        for (size_t k = 0; k < row.size(); ++k) out.data[i * row.size() + k] = (float)row[k];
    }
    return out.take();
}

// Codes into rows of blocks, and their scalars into columns.
void pack(const InOut<uint32_t, 3>& blocks, int64_t start, const In<uint8_t, 2>& codes,
          const std::optional<InOut<float, 2>>& columns, const std::optional<In<float, 2>>& scalars) {
    const size_t words = (codes.shape(1) + 3) / 4, n = codes.shape(0);
    check(blocks.shape(1) == words && blocks.shape(2) == tq::kLanes, "blocks: shape must be [n, ceil(code_size/4), 16]");
    check(start >= 0 && start + (int64_t)n <= (int64_t)blocks.shape(0) * tq::kLanes,
          "codes: rows must fit into the blocks");
    check(columns.has_value() == scalars.has_value(), "give columns with scalars");
    if (scalars)
        check(scalars->shape(0) == n && scalars->shape(1) == columns->shape(0) &&
                  (size_t)start + n <= columns->shape(1),
              "scalars: one row a code, of a value for each column");
    nb::gil_scoped_release release;
    tq::pack_rows(blocks.data(), (int)words, start, codes.data(), (int64_t)n, (int)codes.shape(1));
    if (!scalars) return;
    for (size_t s = 0; s < columns->shape(0); ++s) {
        float* column = columns->data() + s * columns->shape(1) + start;
        for (size_t i = 0; i < n; ++i) column[i] = scalars->data()[i * columns->shape(0) + s];
    }
}

void put(const InOut<uint32_t, 3>& blocks, const In<int64_t, 1>& positions, const In<uint8_t, 2>& codes) {
    const size_t words = (codes.shape(1) + 3) / 4;
    check(blocks.shape(1) == words && blocks.shape(2) == tq::kLanes, "blocks: shape must be [n, ceil(code_size/4), 16]");
    check(positions.shape(0) == codes.shape(0), "positions and codes must be of one length");
    const int64_t end = (int64_t)blocks.shape(0) * tq::kLanes;
    for (size_t i = 0; i < positions.shape(0); ++i)
        check(positions.data()[i] >= 0 && positions.data()[i] < end, "positions: must lie inside the blocks");
    nb::gil_scoped_release release;
    for (size_t i = 0; i < positions.shape(0); ++i)
        tq::put_row(blocks.data(), (int)words, positions.data()[i], codes.data() + i * codes.shape(1),
                    (int)codes.shape(1));
}

void move_rows(const InOut<uint32_t, 3>& blocks, const InOut<float, 2>& scalars, const In<int64_t, 1>& from,
               const In<int64_t, 1>& to) {
    const int64_t n = (int64_t)std::min(blocks.shape(0) * tq::kLanes, scalars.shape(1));
    check(blocks.shape(2) == tq::kLanes, "blocks: shape must be [n, words, 16]");
    check(from.shape(0) == to.shape(0), "rows and to must be of one length");
    for (size_t i = 0; i < from.shape(0); ++i)
        check(from.data()[i] >= 0 && from.data()[i] < n && to.data()[i] >= 0 && to.data()[i] < n,
              "rows: must lie inside the blocks and the scalars");
    nb::gil_scoped_release release;
    for (size_t i = 0; i < from.shape(0); ++i) {
        tq::move_row(blocks.data(), from.data()[i], blocks.data(), to.data()[i], (int)blocks.shape(1));
        for (size_t s = 0; s < scalars.shape(0); ++s) {
            float* column = scalars.data() + s * scalars.shape(1);
            column[to.data()[i]] = column[from.data()[i]];
        }
    }
}

auto unpack(const In<uint32_t, 3>& blocks, const In<int64_t, 1>& positions, int code_size) {
    const int words = (code_size + 3) / 4;
    check((int)blocks.shape(1) == words && blocks.shape(2) == tq::kLanes,
          "blocks: shape must be [n, ceil(code_size/4), 16]");
    const int64_t end = (int64_t)blocks.shape(0) * tq::kLanes;
    for (size_t i = 0; i < positions.shape(0); ++i)
        check(positions.data()[i] >= 0 && positions.data()[i] < end, "positions: must lie inside the blocks");
    Array<uint8_t> out({positions.shape(0), (size_t)code_size});
    {
        nb::gil_scoped_release release;
        for (size_t i = 0; i < positions.shape(0); ++i)
            tq::unpack_row(blocks.data(), words, positions.data()[i], out.data + i * code_size, code_size);
    }
    return out.take();
}

template <class T>
const T* column(const Optional<T>& a, int64_t n, const char* message) {
    if (!a) return nullptr;
    check((int64_t)a->shape(0) >= n, message);
    return a->data();
}

// The stored rows as one argument of search and range_search; arrays must outlive the call.
struct Stored {
    std::optional<In<uint32_t, 3>> blocks;
    std::optional<In<uint8_t, 2>> packed, tails;
    Optional<float> scale, sign_scale, squared_norm;
    Optional<int64_t> ids;
    Optional<uint8_t> mask;
    std::optional<In<float, 3>> signs;
    bool unit = false;
    int64_t n = 0;
    bool positions = false;
    float head_share = 0, deviations = 0, same_scale = 0;

    // Rows that are allowed by `admitted`, if given, instead of by the mask.
    tq::Rows rows(const tq::Code& code, const Optional<uint8_t>& admitted) const {
        tq::Rows all = rows(code);
        if (admitted) all.mask = column(admitted, (n + 7) / 8, "mask: needs one bit a row");
        return all;
    }

    tq::Rows rows(const tq::Code& code) const {
        check(n >= 0 && blocks.has_value() != packed.has_value(), "give either blocks or rows");
        if (blocks)
            check((int)blocks->shape(1) == (code.head_size() + 3) / 4 && blocks->shape(2) == tq::kLanes &&
                      (int64_t)blocks->shape(0) * tq::kLanes >= n,
                  "blocks: shape must be [>= n/16, ceil(head_size/4), 16]");
        else
            check((int)packed->shape(1) == code.code_size && (int64_t)packed->shape(0) >= n,
                  "rows: shape must be [>= n, code_size]");
        if (blocks && code.tail_size())
            check(tails && (int)tails->shape(1) == code.tail_size() && (int64_t)tails->shape(0) >= n,
                  "tails: shape must be [>= n, code_size - head_size]");
        check(scale.has_value() != (same_scale != 0) && sign_scale.has_value() == code.signs,
              "scale: one column a scalar of the code, or same_scale");
        return {&code,
                blocks ? blocks->data() : nullptr,
                packed ? packed->data() : nullptr,
                column(scale, n, "scale: length must be at least n"),
                column(sign_scale, n, "sign_scale: length must be at least n"),
                column(squared_norm, n, "squared_norm: length must be at least n"),
                column(ids, n, "ids: length must be at least n"),
                column(mask, (n + 7) / 8, "mask: needs one bit a row"),
                n,
                positions,
                tails ? tails->data() : nullptr,
                head(code),
                same_scale};
    }

    tq::Head head(const tq::Code& code) const {
        check(head_share >= 0 && head_share <= 1 && deviations >= 0, "head_share: must be in [0, 1], deviations >= 0");
        check(head_share == 0 || code.head_words, "head_share: needs a code with head_words");
        return {head_share, deviations};
    }
};

// What is asked for: rows in the coordinates of the code, and their constants; or, without constants, vectors that
// `stored.signs` rotate.
class Asked {
public:
    Asked(const tq::Code& code, const Stored& stored, const In<float, 2>& q, const Optional<double>& constants)
        : q_(q.data()), n_((int64_t)q.shape(0)) {
        check((int)q.shape(1) == code.query_size(), "q: columns must equal the code's query size");
        if (constants) {
            check(constants->shape(0) == q.shape(0), "constants: one a query");
            constants_ = constants->data();
            return;
        }
        check(stored.signs && (int)stored.signs->shape(2) == code.query_size(),
              "signs: without constants, last axis must equal the code's query size");
        rotation_ = rotation_view(*stored.signs);
        unit_ = stored.unit;
        squares_ = stored.squared_norm.has_value();
    }

    tq::Queries queries(int threads) {
        if (constants_) return {q_, constants_, n_};
        rotated_ = tq::Aligned<float>((size_t)(n_ * rotation_.d));
        computed_.resize((size_t)n_);
        tq::rotate_queries(rotation_, unit_, q_, n_, rotated_.get(), computed_.data(), threads);
        if (!squares_) std::fill(computed_.begin(), computed_.end(), 0.0);
        return {rotated_.get(), computed_.data(), n_};
    }

private:
    const float* q_;
    const double* constants_ = nullptr;
    int64_t n_;
    tq::RotationView rotation_{};
    bool unit_ = false, squares_ = false;
    tq::Aligned<float> rotated_;
    std::vector<double> computed_;
};

nb::tuple search(const tq::Code& code, const Stored& stored, const In<float, 2>& q,
                 const Optional<double>& constants, int64_t k, int threads, const Optional<uint8_t>& mask) {
    check(k >= 1, "k: must be at least 1");
    const tq::Rows rows = stored.rows(code, mask);
    Asked asked(code, stored, q, constants);
    Array<float> distances({q.shape(0), (size_t)k});
    Array<int64_t> ids({q.shape(0), (size_t)k});
    {
        nb::gil_scoped_release release;
        const int most = threads_or_default(threads);
        tq::search(rows, asked.queries(most), k, distances.data, ids.data, most);
    }
    return nb::make_tuple(distances.take(), ids.take());
}

nb::tuple rescore(const tq::Code& code, const Stored& stored, const In<float, 2>& q, const Optional<double>& constants,
                  const In<int64_t, 2>& candidates, int64_t k, int threads) {
    check(k >= 1, "k: must be at least 1");
    const tq::Rows rows = stored.rows(code);
    Asked asked(code, stored, q, constants);
    check(candidates.shape(0) == q.shape(0), "candidates: one row a query");
    for (size_t i = 0; i < candidates.size(); ++i)
        check(candidates.data()[i] >= -1 && candidates.data()[i] < rows.n, "candidates: must be from -1 to n - 1");
    Array<float> distances({q.shape(0), (size_t)k});
    Array<int64_t> ids({q.shape(0), (size_t)k});
    {
        nb::gil_scoped_release release;
        const int most = threads_or_default(threads);
        tq::rescore(rows, asked.queries(most), candidates.data(), (int64_t)candidates.shape(1), k, distances.data,
                    ids.data, most);
    }
    return nb::make_tuple(distances.take(), ids.take());
}

nb::tuple range_search(const tq::Code& code, const Stored& stored, const In<float, 2>& q,
                       const Optional<double>& constants, float radius, int threads) {
    const tq::Rows rows = stored.rows(code);
    Asked asked(code, stored, q, constants);
    std::vector<std::vector<tq::Hit>> hits;
    {
        nb::gil_scoped_release release;
        const int most = threads_or_default(threads);
        hits = tq::range_search(rows, asked.queries(most), radius, most);
    }
    size_t total = 0;
    for (const auto& h : hits) total += h.size();
    Array<int64_t> limits({hits.size() + 1}), ids({total});
    Array<float> distances({total});
    limits.data[0] = 0;
    for (size_t i = 0, at = 0; i < hits.size(); ++i) {
        for (const tq::Hit& h : hits[i]) {
            distances.data[at] = h.distance;
            ids.data[at++] = h.id;
        }
        limits.data[i + 1] = (int64_t)at;
    }
    return nb::make_tuple(limits.take(), distances.take(), ids.take());
}

std::vector<std::string> simd_levels() {
    const std::string active = tq::kernels()->name;
    std::vector<std::string> out;
    for (const char* name : {"avx512", "avx2", "neon", "scalar"})
        if (tq::set_simd(name)) out.push_back(name);
    tq::set_simd(active.c_str());
    return out;
}

// The position of a key among ids [n]; the map knows of those that are not their own positions.
int64_t position_of(const tq::Int64Map& m, const In<int64_t, 1>& ids, int64_t key) {
    if (key >= 0 && key < (int64_t)ids.shape(0) && ids.data()[key] == key) return key;
    return m.get(key);
}

auto map_find(const tq::Int64Map& m, const In<int64_t, 1>& ids, const In<int64_t, 1>& keys) {
    Array<int64_t> out({keys.shape(0)});
    for (size_t i = 0; i < keys.shape(0); ++i) out.data[i] = position_of(m, ids, keys.data()[i]);
    return out.take();
}

auto map_present(const tq::Int64Map& m, const In<int64_t, 1>& ids, const In<int64_t, 1>& keys) {
    std::vector<int64_t> found;
    found.reserve(keys.shape(0));
    for (size_t i = 0; i < keys.shape(0); ++i)
        if (const int64_t position = position_of(m, ids, keys.data()[i]); position >= 0) found.push_back(position);
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return copied(found);
}

// Ids [n] lose those at `gone`, and those at `movers` go to `holes`, as `removal_moves` has them.
void map_remove(tq::Int64Map& m, const InOut<int64_t, 1>& ids, const In<int64_t, 1>& gone, const In<int64_t, 1>& holes,
                const In<int64_t, 1>& movers) {
    check(holes.shape(0) == movers.shape(0), "holes and movers must be of one length");
    const auto inside = [&](const In<int64_t, 1>& rows) {
        for (size_t i = 0; i < rows.shape(0); ++i)
            if (rows.data()[i] < 0 || rows.data()[i] >= (int64_t)ids.shape(0)) return false;
        return true;
    };
    check(inside(gone) && inside(holes) && inside(movers), "positions: must be rows of the ids");
    int64_t* at = ids.data();
    for (size_t i = 0; i < movers.shape(0); ++i)
        check(at[movers.data()[i]] >= 0, "ids: must not be negative");
    m.reserve(m.size() + holes.shape(0));
    for (size_t i = 0; i < gone.shape(0); ++i) m.erase(at[gone.data()[i]]);
    for (size_t i = 0; i < holes.shape(0); ++i) {
        at[holes.data()[i]] = at[movers.data()[i]];
        m.set(at[holes.data()[i]], holes.data()[i]);
    }
}

// One bit for each of n rows, set where `rows` names it; other numbers are passed over.
auto bits_of(const In<int64_t, 1>& rows, int64_t n) {
    check(n >= 0, "n: must not be negative");
    const size_t size = (size_t)(n + 7) / 8;
    Array<uint8_t> out({size});
    std::memset(out.data, 0, size);
    for (size_t i = 0; i < rows.shape(0); ++i)
        if (const int64_t row = rows.data()[i]; row >= 0 && row < n) out.data[row / 8] |= (uint8_t)(1 << row % 8);
    return out.take();
}

// The rows [0, n) without `gone`, sorted, in n - gone.size() places: the gaps, and the rows past the end to fill them.
nb::tuple removal_moves(int64_t n, const In<int64_t, 1>& gone) {
    const int64_t *first = gone.data(), *end = first + gone.shape(0), left = n - (int64_t)gone.shape(0);
    for (const int64_t* p = first; p < end; ++p)
        check(*p >= 0 && *p < n && (p == first || p[-1] < *p), "positions: must be increasing, from 0 to n - 1");
    const int64_t* past = std::lower_bound(first, end, left);
    std::vector<int64_t> movers;
    for (int64_t row = left; row < n; ++row)
        if (past < end && *past == row) ++past;
        else movers.push_back(row);
    return nb::make_tuple(copied(std::vector<int64_t>(first, first + movers.size())), copied(movers));
}

void map_set(tq::Int64Map& m, const In<int64_t, 1>& keys, const In<int64_t, 1>& values) {
    check(keys.shape(0) == values.shape(0), "keys and values must be of one length");
    for (size_t i = 0; i < keys.shape(0); ++i) check(keys.data()[i] >= 0, "keys: must not be negative");
    m.reserve(m.size() + keys.shape(0));
    for (size_t i = 0; i < keys.shape(0); ++i) m.set(keys.data()[i], values.data()[i]);
}

}  // namespace

NB_MODULE(_core, m) {
    nb::set_leak_warnings(false);
    m.doc() = "Compiled core of tqcore: rotation, codes, packed layout and search.";
    const char* wanted = std::getenv("TQ_SIMD");
    if (wanted && *wanted && !tq::set_simd(wanted))
        throw std::runtime_error("TQ_SIMD=" + std::string(wanted) +
                                 ": this level is not available on this machine or in this build");
    nb::class_<tq::Code>(m, "Code")
        .def_ro("d", &tq::Code::d)
        .def_ro("code_size", &tq::Code::code_size)
        .def_prop_ro("head_size", &tq::Code::head_size)
        .def_prop_ro("query_size", &tq::Code::query_size)
        .def_prop_ro("scannable", &tq::Code::scannable);
    nb::class_<Stored>(m, "Stored")
        .def(nb::init<>())
        .def_rw("blocks", &Stored::blocks, nb::arg().none())
        .def_rw("rows", &Stored::packed, nb::arg().none())
        .def_rw("tails", &Stored::tails, nb::arg().none())
        .def_rw("scale", &Stored::scale, nb::arg().none())
        .def_rw("sign_scale", &Stored::sign_scale, nb::arg().none())
        .def_rw("same_scale", &Stored::same_scale)
        .def_rw("squared_norm", &Stored::squared_norm, nb::arg().none())
        .def_rw("ids", &Stored::ids, nb::arg().none())
        .def_rw("mask", &Stored::mask, nb::arg().none())
        .def_rw("signs", &Stored::signs, nb::arg().none())
        .def_rw("unit", &Stored::unit)
        .def_rw("n", &Stored::n)
        .def_rw("positions", &Stored::positions)
        .def_rw("head_share", &Stored::head_share)
        .def_rw("deviations", &Stored::deviations);
    nb::class_<tq::Int64Map>(m, "Int64Map")
        .def(nb::init<>())
        .def("find", &map_find, "ids"_a, "keys"_a)
        .def("set", &map_set, "keys"_a, "values"_a)
        .def("present", &map_present, "ids"_a, "keys"_a)
        .def("remove", &map_remove, "ids"_a, "positions"_a, "holes"_a, "movers"_a)
        .def("__len__", &tq::Int64Map::size)
        .def_prop_ro("nbytes", &tq::Int64Map::bytes);
    m.def("chain_code", &make_chain, "d"_a, "p"_a, "q"_a, "tables"_a);
    m.def("join_codes", &join, "codes"_a, "head_words"_a = 0);
    m.def("scalar_code", &make_scalar, "d"_a, "bits"_a, "centroids"_a);
    m.def("sign_code", [](int d) { return with_signs(tq::Code(), d); }, "d"_a);
    m.def("with_signs", [](const tq::Code& c) { return with_signs(c, c.d); }, "code"_a);
    m.def("normalize", &normalize, "x"_a, "threads"_a = 0);
    m.def("first_unfit", &first_unfit, "x"_a, "threads"_a = 0);
    m.def("row_dots", &row_dots, "x"_a, "y"_a, "threads"_a = 0);
    m.def("hadamard_rotate", &hadamard_rotate, "y"_a, "signs"_a, "inverse"_a = false, "threads"_a = 0);
    m.def("project", &project, "x"_a, "matrix"_a, "threads"_a = 0);
    m.def("encode", &encode, "code"_a, "x"_a, "signs"_a.none(), "threads"_a = 0);
    m.def("encode_scaled", &encode_scaled, "code"_a, "x"_a, "signs"_a, "unit"_a, "unbiased"_a, "store_norm"_a,
          "threads"_a = 0);
    m.def("decode", &decode, "code"_a, "codes"_a, "threads"_a = 0);
    m.def("lut", &lut, "code"_a, "q"_a);
    m.def("by_place", [] { return tq::kernels()->by_place; });
    m.def("put_rows", &put, "blocks"_a, "positions"_a, "codes"_a);
    m.def("pack_rows", &pack, "blocks"_a, "start"_a, "codes"_a, "columns"_a = nb::none(), "scalars"_a = nb::none());
    m.def("bits_of", &bits_of, "rows"_a, "n"_a);
    m.def("removal_moves", &removal_moves, "n"_a, "positions"_a);
    m.def("move_rows", &move_rows, "blocks"_a, "scalars"_a, "rows"_a, "to"_a);
    m.def("unpack_rows", &unpack, "blocks"_a, "positions"_a, "code_size"_a);
    m.def("search", &search, "code"_a, "stored"_a, "q"_a, "constants"_a.none(), "k"_a, "threads"_a = 0,
          "mask"_a = nb::none());
    m.def("rescore", &rescore, "code"_a, "stored"_a, "q"_a, "constants"_a.none(), "candidates"_a, "k"_a, "threads"_a = 0);
    m.def("range_search", &range_search, "code"_a, "stored"_a, "q"_a, "constants"_a.none(), "radius"_a, "threads"_a = 0);
    m.def("simd_level", [] { return std::string(tq::kernels()->name); });
    m.def("simd_reason", [] { return std::string(tq::simd_reason()); });
    m.def("simd_levels", &simd_levels);
    m.def("set_simd", [](const std::string& name) { return tq::set_simd(name.c_str()) != 0; }, "name"_a);
    m.def("default_threads", &tq::default_threads);
}
