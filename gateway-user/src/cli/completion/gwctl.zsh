#compdef gwctl
# zsh completion for gwctl: gwctl itself knows what may come next.
_gwctl() {
    local -a lines described
    lines=("${(@f)$(gwctl __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    local line
    for line in $lines; do
        described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    _describe -V gwctl described
}
if [[ $funcstack[1] == _gwctl ]]; then
    _gwctl "$@"
else
    compdef _gwctl gwctl
fi
