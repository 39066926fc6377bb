# Compiled for the sanitizers and not linked to them: their runtime comes with the fuzzer, which is loaded first.
add_compile_options(-fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g1)
