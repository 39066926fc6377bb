// Concurrent encoding and searching of shared rows, each with threads of its own: driver LEVEL [race].
// test_tsan.py builds this with ThreadSanitizer. `race` makes a data race instead, which must be reported.
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "encode.h"
#include "packing.h"
#include "query_tables.h"
#include "search.h"

namespace {

constexpr int kD = 64, kRows = 1000, kQueries = 9, kK = 20, kCallers = 6, kThreads = 3;

struct Case {
    tq::Code code;
    std::vector<float> x, queries, scale, squared_norm;
    std::vector<double> constants;
    std::vector<uint8_t> codes, mask;
    std::vector<uint32_t> blocks;
    std::vector<int64_t> ids, candidates;
    bool l2 = false;

    tq::Rows rows() const {
        return {&code, blocks.data(), nullptr, scale.data(), nullptr, l2 ? squared_norm.data() : nullptr,
                ids.data(), mask.data(), kRows};
    }
    tq::Queries asked() const { return {queries.data(), constants.data(), kQueries}; }
};

Case make_case(int p, int q, int memory, bool l2) {
    Case c;
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    auto fill = [&](size_t n) {
        std::vector<float> out(n);
        for (float& value : out) value = normal(random);
        return out;
    };
    const auto tables = fill((size_t)(q * memory * 16));
    c.code.add_chain(std::make_shared<tq::Chain>(kD, p, q, memory, tables.data()));
    c.l2 = l2;
    c.x = fill((size_t)kRows * kD);
    c.queries = fill((size_t)kQueries * kD);
    c.scale.assign(kRows, 1.25f);
    c.squared_norm.assign(kRows, (float)kD);
    c.constants.assign(kQueries, (double)kD);
    c.mask.assign((kRows + 7) / 8, 0xdb);
    c.codes.resize((size_t)kRows * (size_t)c.code.code_size);
    for (int i = 0; i < kRows; ++i) c.ids.push_back(3 * i + 1);
    for (int i = 0; i < kQueries; ++i)
        for (int j = 0; j < 3 * kK; ++j) c.candidates.push_back((i * 131 + j * 17) % kRows);
    return c;
}

// Everything one caller gets, as bytes.
struct Answer {
    std::vector<uint8_t> bytes;

    template <class T>
    void take(const std::vector<T>& values) {
        const auto* first = (const uint8_t*)values.data();
        bytes.insert(bytes.end(), first, first + values.size() * sizeof(T));
    }
};

Answer encode(const Case& c, const tq::RotationView& rotation, int threads) {
    Answer out;
    std::vector<uint8_t> codes(c.codes.size());
    std::vector<double> dots(kRows), norms(kRows);
    std::vector<float> decoded(c.x.size()), rotated(c.x.size());
    tq::encode_rows(c.code, &rotation, c.x.data(), kRows, codes.data(), dots.data(), norms.data(), threads);
    tq::decode_rows(c.code, codes.data(), kRows, decoded.data(), threads);
    tq::rotate_rows(rotation, c.x.data(), kRows, rotated.data(), false, threads);
    out.take(codes), out.take(dots), out.take(norms), out.take(decoded), out.take(rotated);
    return out;
}

Answer search(const Case& c, int threads) {
    Answer out;
    std::vector<float> distances((size_t)(kQueries * kK));
    std::vector<int64_t> ids(distances.size());
    tq::search(c.rows(), c.asked(), kK, distances.data(), ids.data(), threads);
    out.take(distances), out.take(ids);
    tq::rescore(c.rows(), c.asked(), c.candidates.data(), 3 * kK, kK, distances.data(), ids.data(), threads);
    out.take(distances), out.take(ids);
    for (const auto& hits : tq::range_search(c.rows(), c.asked(), c.l2 ? 60.0f : 90.0f, threads))
        for (const tq::Hit& hit : hits) out.take(std::vector<int64_t>{hit.id}), out.take(std::vector<float>{hit.distance});
    return out;
}

void run_case(int p, int q, int memory, bool l2) {
    Case c = make_case(p, q, memory, l2);
    std::vector<float> signs(2 * kD, 1.0f);
    for (size_t i = 0; i < signs.size(); i += 3) signs[i] = -1.0f;
    const tq::RotationView rotation{kD, 1, signs.data()};
    const Answer encoded = encode(c, rotation, 1);
    std::memcpy(c.codes.data(), encoded.bytes.data(), c.codes.size());
    c.blocks.resize((size_t)((kRows + tq::kLanes - 1) / tq::kLanes * c.code.words() * tq::kLanes));
    tq::pack_rows(c.blocks.data(), c.code.words(), 0, c.codes.data(), kRows, c.code.code_size);
    const Answer found = search(c, 1);
    std::vector<Answer> answers(kCallers);
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i)
        callers.emplace_back([&, i] { answers[i] = i % 3 ? search(c, kThreads) : encode(c, rotation, kThreads); });
    for (auto& caller : callers) caller.join();
    for (int i = 0; i < kCallers; ++i)
        if (answers[i].bytes != (i % 3 ? found : encoded).bytes)
            throw std::runtime_error("a concurrent call gave another answer than a serial one");
}

void race() {
    int shared = 0;
    std::thread other([&] { ++shared; });
    ++shared;
    other.join();
    std::printf("%d\n", shared);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 2) throw std::runtime_error("usage: driver LEVEL [race]");
        if (!tq::set_simd(argv[1])) throw std::runtime_error(std::string(argv[1]) + " is not available here");
        if (argc > 2 && std::string(argv[2]) == "race") {
            race();
            return 0;
        }
        for (bool l2 : {false, true}) {
            run_case(1, 2, 2, l2);
            run_case(3, 4, 2, l2);
            run_case(1, 1, 2, l2);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    std::puts(tq::kernels()->name);
    return 0;
}
