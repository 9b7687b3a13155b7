// Which files of a folder or repository make up a model. Read by the crate and by its build script, so it stands alone.

/// Whether a file of this name belongs to a model folder: configuration, weights, tokenizer, chat template, model card.
pub(crate) fn belongs(name: &str) -> bool {
    let exact = [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "modules.json",
        "config_sentence_transformers.json",
        "MODEL_CARD.md",
        "README.md",
        "LICENSE",
    ];
    exact.contains(&name)
        || name.ends_with(".safetensors")
        || name.ends_with(".gguf")
        || name.ends_with("_Pooling.config.json")
        || (name.starts_with("sentence_") && name.ends_with("_config.json"))
        || (name.starts_with("tokenizer") && name.ends_with(".json"))
        || (name.starts_with("chat_template") && (name.ends_with(".json") || name.ends_with(".jinja")))
}
