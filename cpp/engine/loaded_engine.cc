#include "engine/loaded_engine.h"

#include <utility>

#include "model/registry.h"

namespace octavo {
namespace {

// For the requests of an adapter that was just unloaded to end. The engine sees that nobody has it
// within a step, which on a CPU may take half a second.
constexpr std::chrono::seconds kLoraWait{2};

RunnerConfig runner_config(const EngineConfig& config) {
  RunnerConfig runner;
  runner.max_model_len = config.max_model_len;
  runner.block_size = config.block_size;
  runner.num_blocks = config.num_blocks;
  runner.kv_cache_memory_bytes = config.kv_cache_memory_bytes;
  runner.gpu_memory_utilization = config.gpu_memory_utilization;
  runner.kv_cache_dtype = config.kv_cache_dtype;
  runner.max_num_seqs = config.max_num_seqs;
  runner.max_num_batched_tokens = config.max_num_batched_tokens;
  runner.shares_host_memory = config.backend.device == "cpu";
  return runner;
}

LoraLimits lora_limits(const EngineConfig& config) {
  return {config.max_loras, config.max_lora_rank};
}

// Faults of the configuration are reported before memory is taken or a device is touched.
EngineConfig validated(const EngineConfig& config) {
  validate(runner_config(config));
  if (config.max_loras < 0 || config.max_loras > kMaxLoras) {
    throw ConfigError("--max-loras must be at most " + std::to_string(kMaxLoras));
  }
  if (config.max_loras > 0 && (config.max_lora_rank < 1 || config.max_lora_rank > kMaxLoraRank)) {
    throw ConfigError("--max-lora-rank must be between 1 and " + std::to_string(kMaxLoraRank));
  }
  return config;
}

}  // namespace

LoadedEngine::LoadedEngine(const EngineConfig& config, const ModelConfig& model_config,
                           const Weights::TypeOf& dtype_of)
    : config_(validated(config)),
      backend_(create_backend(config.backend)),
      model_(create_model(model_config, *backend_)) {
  model_->weights().allocate(dtype_of);
  if (config.max_loras == 0) return;
  model_->enable_loras(lora_limits(config));
  model_->allocate_loras();
}

LoadedEngine::~LoadedEngine() { shutdown(); }

void LoadedEngine::require(Phase phase, std::string_view what) const {
  check(phase_ == phase, what);
}

void LoadedEngine::load_weight(std::string_view name, const WeightView& view) {
  require(Phase::kLoading, "load_weight() after finish_loading()");
  model_->weights().load(name, view);
}

void LoadedEngine::load_dummy_weights(uint64_t seed) {
  require(Phase::kLoading, "load_dummy_weights() after finish_loading()");
  model_->weights().load_dummy(seed);
}

void LoadedEngine::finish_loading() {
  require(Phase::kLoading, "finish_loading() twice");
  model_->weights().check_complete();
  backend_->synchronize();
  phase_ = Phase::kLoaded;
}

int64_t LoadedEngine::allocate_kv_cache() {
  require(Phase::kLoaded, "allocate_kv_cache() must follow finish_loading()");
  const RunnerConfig runner = runner_config(config_);
  plan_ = plan_memory(runner, *model_, *backend_, 0);
  auto model_runner = std::make_unique<ModelRunner>(*backend_, *model_, runner, plan_);
  runner_ = model_runner.get();
  EngineConfig resolved = config_;
  resolved.max_model_len = plan_.max_model_len;
  resolved.num_blocks = plan_.num_blocks;
  engine_ = std::make_unique<Engine>(resolved, model_->config().vocab_size, plan_.num_blocks,
                                     std::move(model_runner));
  phase_ = Phase::kAllocated;
  return plan_.num_blocks;
}

void LoadedEngine::warm_up() {
  require(Phase::kAllocated, "warm_up() must follow allocate_kv_cache()");
  warm_up_progress_ = 0.0;
  runner_->warm_up([this](double share) { warm_up_progress_ = share; });
}

void LoadedEngine::self_test() {
  require(Phase::kAllocated, "self_test() must follow allocate_kv_cache()");
  runner_->self_test();
}

void LoadedEngine::start() {
  require(Phase::kAllocated, "start() must follow allocate_kv_cache(), once");
  engine_->start();
  phase_ = Phase::kRunning;
}

double LoadedEngine::progress() const {
  switch (phase_.load()) {
    case Phase::kLoading:
      return model_->weights().progress();
    case Phase::kLoaded:
      return 0.0;
    case Phase::kAllocated:
      return warm_up_progress_;
    case Phase::kRunning:
      return 1.0;
  }
  return 0.0;
}

uint64_t LoadedEngine::begin_lora() {
  if (config_.max_loras == 0) throw ConfigError("adapters need --enable-lora");
  const LoraSlots::Lease lease = engine().begin_lora(kLoraWait);
  try {
    model_->loras().clear(lease.slot);
  } catch (...) {  // nobody else knows the id
    engine().close_lora(lease.id);
    throw;
  }
  return lease.id;
}

void LoadedEngine::load_lora(uint64_t id, std::string_view target, const LoraView& view) {
  model_->loras().load(engine().loading_lora_slot(id), target, view);
}

Engine& LoadedEngine::engine() {
  check(engine_ != nullptr, "the engine exists after allocate_kv_cache()");
  return *engine_;
}

int64_t LoadedEngine::max_model_len() const {
  check(engine_ != nullptr, "the length is known after allocate_kv_cache()");
  return plan_.max_model_len;
}

EngineStats LoadedEngine::stats() const {
  check(engine_ != nullptr, "the engine exists after allocate_kv_cache()");
  EngineStats stats = engine_->stats();
  stats.kv_cache_bytes = stats.is_asleep ? 0 : plan_.kv_cache_bytes();
  stats.weight_bytes = model_->weights().size_bytes();
  return stats;
}

void LoadedEngine::shutdown() {
  if (engine_ != nullptr) engine_->shutdown();
}

MemoryPlan plan_memory(const EngineConfig& config, const ModelConfig& model_config,
                       const Weights::TypeOf& dtype_of) {
  const std::unique_ptr<Backend> backend = create_backend(validated(config).backend);
  const std::unique_ptr<Model> model = create_model(model_config, *backend);
  model->enable_loras(lora_limits(config));
  return plan_memory(runner_config(config), *model, *backend,
                     model->weights().planned_bytes(dtype_of) + model->lora_bytes());
}

std::vector<LoraTarget> lora_targets(const ModelConfig& model_config) {
  BackendOptions options;
  options.num_threads = 1;
  const std::unique_ptr<Backend> backend = create_backend(options);
  return lora_targets(create_model(model_config, *backend)->weights());
}

std::vector<WeightSpec> weight_specs(const EngineConfig& config, const ModelConfig& model_config) {
  const std::unique_ptr<Backend> backend = create_backend(validated(config).backend);
  return create_model(model_config, *backend)->weights().specs();
}

}  // namespace octavo
