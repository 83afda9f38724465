#!/usr/bin/env bash
# Installs into an empty prefix and uses the result as a stranger would: the examples are built through pkg-config and
# through CMake's find_package, shared and static, and run from another folder; the installed program finds its model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
prefix=$folder/prefix
"$CMAKE" --install "$BUILD" --prefix "$prefix" >"$folder/log" || { cat "$folder/log"; exit 1; }
model=$(find "$prefix/share/xlstm/models" -mindepth 1 -maxdepth 1 -type d | head -n 1)

expect()
{
    for file in "$@"; do
        [ -e "$prefix/$file" ] || { echo "wrong: $file was not installed"; exit 1; }
    done
}
libdir=$(dirname "$(cd "$prefix" && find . -name libxlstm.a)")
libdir=${libdir#./}
expect include/xlstm.h "$libdir/libxlstm.so" "$libdir/pkgconfig/xlstm.pc" "$libdir/cmake/xlstm/xlstmConfig.cmake" \
    bin/xlstm share/man/man1/xlstm.1 share/bash-completion/completions/xlstm share/zsh/site-functions/_xlstm \
    share/fish/vendor_completions.d/xlstm.fish

# The .pc file names the configured prefix; this install went elsewhere.
export PKG_CONFIG_PATH=$prefix/$libdir/pkgconfig LD_LIBRARY_PATH=$prefix/$libdir
read -ra flags < <(pkg-config --define-variable=prefix="$prefix" --cflags --libs xlstm)
read -ra static_flags < <(pkg-config --define-variable=prefix="$prefix" --static --cflags --libs xlstm)

cat >"$folder/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(stranger C)
find_package(xlstm 0.1 REQUIRED)
file(GLOB examples ${EXAMPLES}/*.c)
foreach(source ${examples})
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE xlstm::xlstm)
  add_executable(${name}_static ${source})
  target_link_libraries(${name}_static PRIVATE xlstm::static)
endforeach()
END
"$CMAKE" -G Ninja -S "$folder" -B "$folder/cmake" -DCMAKE_PREFIX_PATH="$prefix" -DEXAMPLES="$PWD/examples" \
    -DCMAKE_C_COMPILER="$CC" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
"$CMAKE" --build "$folder/cmake" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }

for source in examples/*.c; do
    name=$(basename "$source" .c)
    lines=$(wc -l <"$source")
    [ "$lines" -lt 60 ] || { echo "wrong: $source has $lines lines, 60 are too many"; exit 1; }
    "$CC" -std=c11 -Wall -Wextra -Werror "$source" "${flags[@]}" -o "$folder/$name"
    "$CC" -std=c11 "$source" "${static_flags[@]/-lxlstm/-l:libxlstm.a}" -o "$folder/${name}_static"
    for program in "$folder/$name" "$folder/${name}_static" "$folder/cmake/$name" "$folder/cmake/${name}_static"; do
        (cd / && "$program" "$model" "Once upon a time") >"$folder/out" 2>"$folder/err" ||
            { echo "wrong: $name failed"; cat "$folder/err"; exit 1; }
        [ "$(wc -c <"$folder/out")" -gt 40 ] || { echo "wrong: $name printed next to nothing"; exit 1; }
        if [ -e "$folder/$name.expected" ]; then
            cmp "$folder/out" "$folder/$name.expected" || { echo "wrong: $program prints something else"; exit 1; }
        else
            cp "$folder/out" "$folder/$name.expected"
        fi
    done
    echo "ok: $source"
done

(cd / && "$prefix/bin/xlstm" generate -p "Once upon a time" --max-tokens 5 --temperature 0) >"$folder/out" ||
    { echo "wrong: the installed program fails"; exit 1; }
grep -q "Once upon a time" "$folder/out" || { echo "wrong: the installed program printed no text"; exit 1; }
echo "ok: installed program"
