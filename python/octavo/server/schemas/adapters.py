"""Bodies of /v1/load_lora_adapter and /v1/unload_lora_adapter."""

import msgspec


class LoadAdapterRequest(msgspec.Struct, kw_only=True):
    """An adapter to load.

    Attributes:
        lora_name: What requests will call it.
        lora_path: Its directory, absolute or relative to one of --lora-root.
        load_inplace: Replace one of that name; requests that run keep the old one.
    """

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterRequest(msgspec.Struct, kw_only=True):
    """An adapter to unload."""

    lora_name: str
