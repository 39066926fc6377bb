// Runs the core on the case in a folder and writes what it gives: driver LEVEL FOLDER...
// test_neon.py builds this for aarch64, runs it under emulation and compares every file with its own machine's core.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "encode.h"
#include "packing.h"
#include "query_tables.h"
#include "search.h"

namespace {

struct Folder {
    std::string path;

    template <class T>
    std::vector<T> read(const std::string& name) const {
        std::ifstream in(path + "/" + name, std::ios::binary | std::ios::ate);
        if (!in) throw std::runtime_error("cannot read " + path + "/" + name);
        std::vector<T> out((size_t)in.tellg() / sizeof(T));
        in.seekg(0);
        in.read((char*)out.data(), (std::streamsize)(out.size() * sizeof(T)));
        return out;
    }

    template <class T>
    void write(const std::string& name, const std::vector<T>& values) const {
        std::ofstream out(path + "/" + name, std::ios::binary);
        out.write((const char*)values.data(), (std::streamsize)(values.size() * sizeof(T)));
        if (!out) throw std::runtime_error("cannot write " + path + "/" + name);
    }
};

// Integers of the file "shape", in this order.
struct Shape {
    int scalar_bits;  // 0: chains; otherwise a scalar code of so many bits
    int d, p, q, memory, parts, head_words, n, nq, k, l2;
};

tq::Code code_of(const Folder& folder, const Shape& s) {
    const auto tables = folder.read<float>("tables");
    tq::Code code;
    if (s.scalar_bits) {
        code.set_scalar(std::make_shared<tq::Scalar>(s.d, s.scalar_bits, tables.data()));
        return code;
    }
    for (int part = 0; part < s.parts; ++part)
        code.add_chain(std::make_shared<tq::Chain>(s.d / s.parts, s.p, s.q, s.memory, tables.data()));
    code.head_words = s.head_words;
    return code;
}

void rotations(const Folder& folder, const Shape& s, const std::vector<float>& x, const std::vector<float>& signs,
               const std::string& level) {
    const tq::RotationView rotation{s.d, (int)(signs.size() / 2 / (size_t)s.d), signs.data()};
    std::vector<float> rotated(x.size()), back(x.size()), projected((size_t)s.n * 8), normal(x.size());
    std::vector<double> norms((size_t)s.n);
    tq::rotate_rows(rotation, x.data(), s.n, rotated.data(), false, 1);
    tq::rotate_rows(rotation, rotated.data(), s.n, back.data(), true, 1);
    tq::project_rows(x.data(), s.n, s.d, folder.read<float>("matrix").data(), 8, projected.data(), 1);
    tq::normalize_rows(x.data(), s.n, s.d, normal.data(), norms.data(), 1);
    folder.write(level + ".rotated", rotated);
    folder.write(level + ".back", back);
    folder.write(level + ".projected", projected);
    folder.write(level + ".normal", normal);
    folder.write(level + ".normal_norms", norms);
}

void searches(const Folder& folder, const Shape& s, const tq::Code& code, const std::vector<uint8_t>& codes,
              const std::string& level) {
    const auto queries = folder.read<float>("queries"), scale = folder.read<float>("scale"),
               squared = folder.read<float>("squared_norm");
    const auto constants = folder.read<double>("constants");
    const int64_t blocks = (s.n + tq::kLanes - 1) / tq::kLanes;
    const int words = (code.head_size() + 3) / 4;
    std::vector<uint32_t> packed((size_t)(blocks * words * tq::kLanes));
    tq::pack_rows(packed.data(), words, 0, codes.data(), s.n, code.code_size);
    std::vector<uint8_t> tails;
    for (int i = 0; i < s.n; ++i) {
        const auto row = codes.begin() + (ptrdiff_t)i * code.code_size;
        tails.insert(tails.end(), row + code.head_size(), row + code.code_size);
    }
    tq::Rows rows{&code, packed.data(), nullptr, scale.data(), nullptr, s.l2 ? squared.data() : nullptr,
                  nullptr, nullptr, s.n};
    rows.tails = tails.data();
    if (s.head_words) rows.head = {0.5f, 1.0f};
    const tq::Queries asked{queries.data(), constants.data(), s.nq};
    std::vector<float> distances((size_t)(s.nq * s.k)), range_distances;
    std::vector<int64_t> ids((size_t)(s.nq * s.k)), range_ids;
    tq::search(rows, asked, s.k, distances.data(), ids.data(), 1);
    for (const auto& hits : tq::range_search(rows, asked, folder.read<float>("radius")[0], 1))
        for (const tq::Hit& hit : hits) {
            range_distances.push_back(hit.distance);
            range_ids.push_back(hit.id);
        }
    folder.write(level + ".blocks", packed);
    folder.write(level + ".distances", distances);
    folder.write(level + ".ids", ids);
    folder.write(level + ".range_distances", range_distances);
    folder.write(level + ".range_ids", range_ids);
}

void run(const Folder& folder, const std::string& level) {
    const auto numbers = folder.read<int32_t>("shape");
    Shape s;
    if (numbers.size() * sizeof(int32_t) != sizeof(s)) throw std::runtime_error("shape has a wrong length");
    std::memcpy(&s, numbers.data(), sizeof(s));
    const tq::Code code = code_of(folder, s);
    const auto x = folder.read<float>("x"), signs = folder.read<float>("signs");
    const tq::RotationView rotation{s.d, (int)(signs.size() / 2 / (size_t)s.d), signs.data()};
    std::vector<uint8_t> codes((size_t)s.n * (size_t)code.code_size);
    std::vector<double> dots((size_t)s.n * (code.parts.size() > 1 ? code.parts.size() : 1)), norms((size_t)s.n);
    std::vector<float> decoded((size_t)s.n * (size_t)code.query_size());
    tq::encode_rows(code, s.parts > 1 ? nullptr : &rotation, x.data(), s.n, codes.data(), dots.data(), norms.data(),
                    1);
    tq::decode_rows(code, codes.data(), s.n, decoded.data(), 1);
    folder.write(level + ".codes", codes);
    folder.write(level + ".dots", dots);
    folder.write(level + ".norms", norms);
    folder.write(level + ".decoded", decoded);
    rotations(folder, s, x, signs, level);
    searches(folder, s, code, codes, level);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        if (argc < 3) throw std::runtime_error("usage: driver LEVEL FOLDER...");
        if (!tq::set_simd(argv[1])) throw std::runtime_error(std::string(argv[1]) + " is not available here");
        for (int i = 2; i < argc; ++i) run({argv[i]}, argv[1]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    std::puts(tq::kernels()->name);
    return 0;
}
