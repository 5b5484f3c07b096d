# copy_jars, for the components that come as jars; sourced after lib.sh.

# copy_jars POM FOLDER leaves the jars that POM depends on in FOLDER/libs.
copy_jars() {
    local pom="$1" folder="$2" missing=() wanted
    have javac || missing+=(default-jdk-headless)
    have mvn || missing+=(maven)
    [ ${#missing[@]} -eq 0 ] || need_packages "${missing[@]}"

    wanted="$(sha256sum <"$pom")"
    lock "$(basename "$folder")"
    stamped "$folder" "$wanted" && return 0

    say "jars: $folder"
    rm -rf "$folder"
    mkdir -p "$folder/libs"
    mvn --batch-mode --quiet --file "$pom" -Dmaven.repo.local="$cache/m2" \
        dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$folder/libs" >&2
    stamp "$folder" "$wanted"
}
