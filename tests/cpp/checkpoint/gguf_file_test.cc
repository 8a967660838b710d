#include "checkpoint/gguf_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <numeric>

#include "base/errors.h"
#include "checkpoint/gguf_writer.h"

namespace octavo {
namespace {

using test::Bytes;
using test::GgufImage;
using test::TempDir;
using ::testing::Test;

constexpr uint32_t kUint32 = 4, kFloat32 = 6, kString = 8, kArray = 9;

// What GgufFile says about an image: "" when it takes it.
template <typename Error>
std::string refusal(const TempDir& dir, const std::string& image) {
  try {
    const GgufFile file(dir.write("m.gguf", image));
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_DAMAGED(image, cause)                                              \
  do {                                                                            \
    const std::string message = refusal<CheckpointError>(dir_, (image).encode()); \
    EXPECT_NE(message.find("m.gguf"), std::string::npos) << message;              \
    EXPECT_NE(message.find(cause), std::string::npos) << message;                 \
  } while (false)

class GgufFileTest : public Test {
 protected:
  // Two tensors: "a" float32 [2, 3] at 0 and "b" Q8_0 [1, 32] at 32.
  static GgufImage small() {
    GgufImage image;
    image.with("k.u", kUint32, uint32_t{7});
    image.tensors = {{"a", {3, 2}, 0, 0}, {"b", {32}, 8, 32}};
    image.data.resize(32 + 34);
    std::iota(image.data.begin(), image.data.end(), '\0');
    return image;
  }

  TempDir dir_;
};

TEST_F(GgufFileTest, ReadsTensors) {
  const GgufFile file(dir_.write("m.gguf", small().encode()));
  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor* a = file.find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->dtype, DType::kFloat32);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a->num_bytes, 24);
  const GgufTensor* b = file.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->num_bytes, 34);
  std::vector<std::byte> bytes(34);
  file.read_tensor(*b, 0, bytes);
  EXPECT_EQ(std::memcmp(bytes.data(), small().data.data() + 32, 34), 0);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST_F(GgufFileTest, ReadsEveryMetadataType) {
  GgufImage image;
  image.with("u8", 0, uint8_t{200}).with("i8", 1, int8_t{-5}).with("u16", 2, uint16_t{60000});
  image.with("i16", 3, int16_t{-300}).with("u32", 4, uint32_t{4000000000u});
  image.with("i32", 5, int32_t{-7}).with("f32", 6, 1.5f).with("bool", 7, uint8_t{1});
  image.with_bytes("str", Bytes().put(kString).string("héllo"));
  image.with("u64", 10, uint64_t{1} << 63).with("i64", 11, int64_t{-1}).with("f64", 12, 2.5);
  image.version = 2;
  const GgufFile file(dir_.write("m.gguf", image.encode()));
  const GgufMetadata& values = file.metadata();
  ASSERT_EQ(values.size(), 12u);
  EXPECT_EQ(std::get<uint8_t>(values[0].second.data), 200);
  EXPECT_EQ(std::get<int8_t>(values[1].second.data), -5);
  EXPECT_EQ(std::get<uint16_t>(values[2].second.data), 60000);
  EXPECT_EQ(std::get<int16_t>(values[3].second.data), -300);
  EXPECT_EQ(std::get<uint32_t>(values[4].second.data), 4000000000u);
  EXPECT_EQ(std::get<int32_t>(values[5].second.data), -7);
  EXPECT_EQ(std::get<float>(values[6].second.data), 1.5f);
  EXPECT_TRUE(std::get<bool>(values[7].second.data));
  EXPECT_EQ(std::get<std::string>(values[8].second.data), "héllo");
  EXPECT_EQ(std::get<uint64_t>(values[9].second.data), uint64_t{1} << 63);
  EXPECT_EQ(std::get<int64_t>(values[10].second.data), -1);
  EXPECT_EQ(std::get<double>(values[11].second.data), 2.5);
}

TEST_F(GgufFileTest, ReadsArrays) {
  GgufImage image;
  Bytes strings, floats, bools, nested;
  strings.put(kArray).put(kString).put<uint64_t>(3).string("a").string("").string("bcd");
  floats.put(kArray).put(kFloat32).put<uint64_t>(2).put(0.5f).put(-1.0f);
  bools.put(kArray).put<uint32_t>(7).put<uint64_t>(2).put<uint8_t>(1).put<uint8_t>(0);
  nested.put(kArray).put(kArray).put<uint64_t>(1).put(kUint32).put<uint64_t>(1).put<uint32_t>(9);
  image.with_bytes("s", strings).with_bytes("f", floats).with_bytes("b", bools);
  image.with_bytes("n", nested);
  const GgufFile file(dir_.write("m.gguf", image.encode()));
  const auto array = [&](int i) { return std::get<GgufArray>(file.metadata()[i].second.data); };
  const auto read_strings = std::get<GgufStrings>(array(0));
  ASSERT_EQ(read_strings.size(), 3);
  EXPECT_EQ(read_strings[0], "a");
  EXPECT_EQ(read_strings[1], "");
  EXPECT_EQ(read_strings[2], "bcd");
  EXPECT_EQ(std::get<std::vector<float>>(array(1)), (std::vector<float>{0.5f, -1.0f}));
  EXPECT_EQ(std::get<std::vector<bool>>(array(2)), (std::vector<bool>{true, false}));
  const auto inner = std::get<std::vector<GgufValue>>(array(3));
  ASSERT_EQ(inner.size(), 1u);
  EXPECT_EQ(std::get<std::vector<uint32_t>>(std::get<GgufArray>(inner[0].data)),
            (std::vector<uint32_t>{9}));
}

TEST_F(GgufFileTest, HonoursAlignment) {
  GgufImage image = small();
  image.with("general.alignment", kUint32, uint32_t{64});
  image.alignment = 64;
  image.tensors[1].offset = 64;
  image.data.resize(64 + 34, 'x');
  const GgufFile file(dir_.write("m.gguf", image.encode()));
  std::vector<std::byte> bytes(34);
  file.read_tensor(*file.find("b"), 0, bytes);
  EXPECT_EQ(bytes[33], std::byte{'x'});
}

TEST_F(GgufFileTest, RefusesWhatIsNoFile) {
  EXPECT_THROW(GgufFile(dir_.path() + "/absent.gguf"), CheckpointError);
  EXPECT_THROW(GgufFile{dir_.path()}, CheckpointError);
  const std::string fifo = dir_.path() + "/fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THROW(GgufFile{fifo}, CheckpointError);
  EXPECT_NE(refusal<CheckpointError>(dir_, "").find("m.gguf"), std::string::npos);
  EXPECT_NE(refusal<CheckpointError>(dir_, "PK\x03\x04 a zip file").find("not a GGUF"),
            std::string::npos);
}

TEST_F(GgufFileTest, RefusesOtherVersionsAndByteOrder) {
  GgufImage image = small();
  image.version = 1;
  EXPECT_NE(refusal<UnsupportedModelError>(dir_, image.encode()).find("version 1"),
            std::string::npos);
  image.version = 3u << 24;
  EXPECT_NE(refusal<UnsupportedModelError>(dir_, image.encode()).find("big-endian"),
            std::string::npos);
}

TEST_F(GgufFileTest, NamesUnsupportedTypes) {
  GgufImage image = small();
  image.tensors[1].type = 34;
  std::string message = refusal<UnsupportedModelError>(dir_, image.encode());
  EXPECT_NE(message.find("'b' has type TQ1_0"), std::string::npos) << message;
  image.tensors[1].type = 4711;
  message = refusal<UnsupportedModelError>(dir_, image.encode());
  EXPECT_NE(message.find("type 4711"), std::string::npos) << message;
}

TEST_F(GgufFileTest, RefusesHugeCounts) {
  for (const int64_t count :
       {int64_t{1} << 20, int64_t{1} << 40, std::numeric_limits<int64_t>::min(), int64_t{-4}}) {
    GgufImage image = small();
    image.extra_tensors = count;
    EXPECT_DAMAGED(image, "tensor count");
    image = small();
    image.extra_pairs = count;
    EXPECT_DAMAGED(image, "metadata count");
  }
  for (const uint64_t count : {uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}}) {
    for (const uint32_t type : {0u, 4u, 7u, 8u, 9u, 12u}) {
      GgufImage image = small();
      image.with_bytes("array", Bytes().put(kArray).put(type).put(count));
      EXPECT_DAMAGED(image, "'array': declares");
    }
    GgufImage image = small();
    image.with_bytes("text", Bytes().put(kString).put(count));
    EXPECT_DAMAGED(image, "'text': declares");
  }
}

TEST_F(GgufFileTest, RefusesBadMetadata) {
  GgufImage image = small();
  image.with("bad", 13, uint32_t{0});
  EXPECT_DAMAGED(image, "unknown value type 13");
  image = small();
  image.with("k.u", kUint32, uint32_t{0});
  EXPECT_DAMAGED(image, "'k.u': is there twice");
  image = small();
  image.with("", kUint32, uint32_t{0});
  EXPECT_DAMAGED(image, "a name of 0 bytes");
  image = small();
  Bytes deep;
  deep.put(kArray);
  for (int i = 0; i < 10000; ++i) deep.put(kArray).put<uint64_t>(1);
  image.with_bytes("deep", deep.put(kUint32).put<uint64_t>(0));
  EXPECT_DAMAGED(image, "'deep': arrays nested too deep");
  for (const uint32_t alignment : {0u, 3u, 48u}) {
    image = small();
    image.with("general.alignment", kUint32, alignment);
    EXPECT_DAMAGED(image, "no power of two");
  }
}

TEST_F(GgufFileTest, RefusesBadShapes) {
  const auto damaged = [&](std::vector<uint64_t> dims, const char* cause) {
    GgufImage image = small();
    image.tensors[1].dims = std::move(dims);
    EXPECT_DAMAGED(image, cause);
  };
  damaged({}, "'b': rank 0");
  damaged({32, 1, 1, 1, 1}, "'b': rank 5");
  damaged({0}, "'b': a dimension of 0");
  damaged({~uint64_t{0}}, "'b': a dimension of");
  damaged({31}, "'b': rows of 31 values");
  damaged({32, uint64_t{1} << 62}, "'b': its shape overflows");
  damaged({uint64_t{1} << 32, uint64_t{1} << 32}, "'b': its shape overflows");
  damaged({uint64_t{1} << 62}, "'b': its 4899916394579099648 bytes");
  damaged({64}, "'b': its 68 bytes from byte");
}

TEST_F(GgufFileTest, RefusesBadPlaces) {
  const auto damaged = [&](uint64_t offset, const char* cause) {
    GgufImage image = small();
    image.tensors[1].offset = offset;
    EXPECT_DAMAGED(image, cause);
  };
  damaged(0, "overlaps tensor");
  damaged(33, "'b': its offset is not aligned");
  damaged(64, "'b': its 34 bytes from byte");
  damaged(uint64_t{1} << 40, "'b': offset");
  damaged(~uint64_t{31}, "'b': offset");
  GgufImage image = small();
  image.tensors[1].name = "a";
  EXPECT_DAMAGED(image, "'a': its name is there twice");
}

TEST_F(GgufFileTest, EscapesNamesInMessages) {
  GgufImage image = small();
  image.tensors[1].name = "\x1b[2J" + std::string(500, 'x');
  const std::string message = refusal<CheckpointError>(dir_, image.encode());
  EXPECT_NE(message.find("\\x1b[2Jxxx"), std::string::npos) << message;
  EXPECT_LT(message.size(), 400u);
}

// Whatever is cut off, the file is refused with its name; never a crash, never a hang.
TEST_F(GgufFileTest, RefusesEveryTruncation) {
  GgufImage image = small();
  Bytes strings;
  strings.put(kArray).put(kString).put<uint64_t>(40);
  for (int i = 0; i < 40; ++i) strings.string("token" + std::to_string(i));
  image.with_bytes("tokens", strings);
  const std::string whole = image.encode();
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string message = refusal<CheckpointError>(dir_, whole.substr(0, size));
    EXPECT_NE(message.find("m.gguf"), std::string::npos) << size;
  }
  EXPECT_EQ(refusal<CheckpointError>(dir_, whole), "");
}

// Every single-bit damage either is refused by one of the two errors or leaves tensors that lie in
// the file.
TEST_F(GgufFileTest, SurvivesEveryBitFlip) {
  const std::string whole = small().encode();
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string image = whole;
    image[bit / 8] = static_cast<char>(image[bit / 8] ^ (1 << (bit % 8)));
    try {
      const GgufFile file(dir_.write("m.gguf", image));
      for (const GgufTensor& tensor : file.tensors()) {
        std::vector<std::byte> bytes(tensor.num_bytes);
        file.read_tensor(tensor, 0, bytes);
        EXPECT_LE(tensor.num_bytes, static_cast<int64_t>(whole.size()));
      }
    } catch (const CheckpointError&) {
    } catch (const UnsupportedModelError&) {
    }
  }
}

TEST_F(GgufFileTest, ReportsAFileThatShrinks) {
  const std::string path = dir_.write("m.gguf", small().encode());
  const GgufFile file(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 40);
  std::vector<std::byte> bytes(34);
  try {
    file.read_tensor(*file.find("b"), 0, bytes);
    FAIL() << "read bytes that are not there";
  } catch (const CheckpointError& error) {
    EXPECT_NE(std::string(error.what()).find("tensor 'b'"), std::string::npos) << error.what();
  }
}

class SplitGgufTest : public Test {
 protected:
  static GgufImage shard(uint16_t index, uint16_t count, const std::string& tensor) {
    GgufImage image;
    image.with("split.no", 2, index).with("split.count", 2, count);
    image.with("split.tensors.count", 5, int32_t{count});
    image.tensors = {{tensor, {8}, 0, 0}};
    image.data = std::string(32, static_cast<char>('0' + index));
    return image;
  }
  std::string write(const GgufImage& image, int number, int count) const {
    return dir_.write(
        "m-0000" + std::to_string(number) + "-of-0000" + std::to_string(count) + ".gguf",
        image.encode());
  }
  std::string refused(const std::string& path) const {
    try {
      const GgufFile file(path);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "";
  }

  TempDir dir_;
};

TEST_F(SplitGgufTest, JoinsShards) {
  const std::string first = write(shard(0, 3, "a"), 1, 3);
  write(shard(1, 3, "b"), 2, 3);
  write(shard(2, 3, "c"), 3, 3);
  const GgufFile file(first);
  ASSERT_EQ(file.tensors().size(), 3u);
  for (const auto& [name, value] : {std::pair{"a", '0'}, {"b", '1'}, {"c", '2'}}) {
    std::vector<std::byte> bytes(32);
    file.read_tensor(*file.find(name), 0, bytes);
    EXPECT_EQ(static_cast<char>(bytes[31]), value);
  }
}

TEST_F(SplitGgufTest, NamesTheMissingShard) {
  const std::string first = write(shard(0, 2, "a"), 1, 2);
  EXPECT_NE(refused(first).find("m-00002-of-00002.gguf"), std::string::npos) << refused(first);
}

TEST_F(SplitGgufTest, RefusesShardsThatDoNotBelong) {
  const std::string first = write(shard(0, 2, "a"), 1, 2);
  const std::string second = write(shard(0, 2, "b"), 2, 2);
  EXPECT_NE(refused(first).find("not shard 2 of 2"), std::string::npos);
  write(shard(1, 2, "a"), 2, 2);
  EXPECT_NE(refused(first).find("'a': is in another shard too"), std::string::npos);
  write(shard(1, 2, "b"), 2, 2);
  EXPECT_EQ(refused(first), "");
  EXPECT_NE(refused(second).find("open the one named ...-00001-of-00002.gguf"), std::string::npos);
}

TEST_F(SplitGgufTest, ChecksTheNumberOfTensors) {
  GgufImage image = shard(0, 1, "a");
  image.pairs[2].second = Bytes().put<uint32_t>(5).put<int32_t>(9).text();
  EXPECT_NE(refused(write(image, 1, 1)).find("declares 9 tensors"), std::string::npos);
}

}  // namespace
}  // namespace octavo
