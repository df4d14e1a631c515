// Logits of llama.cpp for stretches of tokens: llama_cpp_logits MODEL.gguf THREADS
// stdin: for each stretch int32 count, then so many int32 token ids; stdout: its float32 logits
// [count, vocabulary], of an empty context each time. Everything else is llama.cpp's default. Build:
//   g++ -O2 -std=c++17 -I SOURCE/include -I SOURCE/ggml/include llama_cpp_logits.cpp
//       BUILD/src/libllama.a BUILD/ggml/src/libggml{,-cpu,-base}.a -fopenmp -ldl -o llama_cpp_logits
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

static const int MAX_STRETCH = 512;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 3) fail("usage: llama_cpp_logits MODEL.gguf THREADS");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) fail("the model cannot be read");
    llama_context_params settings = llama_context_default_params();
    settings.n_ctx = settings.n_batch = settings.n_ubatch = MAX_STRETCH;
    settings.n_threads = settings.n_threads_batch = atoi(argv[2]);
    llama_context *context = llama_init_from_model(model, settings);
    if (!context) fail("no context");
    const size_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_batch batch = llama_batch_init(MAX_STRETCH, 0, 1);
    std::vector<int32_t> ids(MAX_STRETCH);
    int32_t count;
    while (fread(&count, sizeof count, 1, stdin) == 1) {
        if (count < 1 || count > MAX_STRETCH) fail("a stretch has 1 to 512 tokens");
        if (fread(ids.data(), sizeof(int32_t), count, stdin) != (size_t)count) fail("tokens end early");
        batch.n_tokens = count;
        for (int i = 0; i < count; ++i) {
            batch.token[i] = ids[i];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = true;
        }
        llama_memory_clear(llama_get_memory(context), true);
        if (llama_decode(context, batch) != 0) fail("a stretch cannot be decoded");
        fwrite(llama_get_logits(context), sizeof(float), count * vocabulary, stdout);
        fflush(stdout);
    }
}
