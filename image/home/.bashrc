# The agent's shell: Claude Code's Bash tool reads it too, so the part before the guard is for every shell.

# Tools that the agent installs for itself come first, once each however many shells deep.
for dir in "$HOME/.bun/bin" "$HOME/go/bin" "$HOME/.cargo/bin" "$HOME/.local/bin"; do
  case ":$PATH:" in
    *":$dir:"*) ;;
    *) PATH="$dir:$PATH" ;;
  esac
done
unset dir
export PATH
export GOTELEMETRY=off

case $- in
  *i*) ;;
  *) return ;;
esac

HISTCONTROL=ignoreboth
HISTSIZE=10000
shopt -s checkwinsize histappend
alias ll='ls -l --color=auto' ls='ls --color=auto' grep='grep --color=auto'

# Two lines: the path from the repository's root and the branch, then the prompt. Read from .git by the shell itself,
# since three git processes at every prompt are felt in a large repository.
__box_prompt() {
  local dir=$PWD git='' head='' branch=''
  while :; do
    if [ -d "$dir/.git" ]; then
      git="$dir/.git"
      break
    elif [ -f "$dir/.git" ]; then # a worktree or submodule: "gitdir: PATH"
      read -r git <"$dir/.git"
      git=${git#gitdir: }
      case $git in /*) ;; *) git="$dir/$git" ;; esac
      break
    fi
    [ -n "$dir" ] || break
    dir=${dir%/*}
  done
  if [ -n "$git" ] && [ -r "$git/HEAD" ]; then
    read -r head <"$git/HEAD"
    case $head in # a repository with reftable keeps it elsewhere
      'ref: refs/heads/.invalid') branch=$(git symbolic-ref --quiet --short HEAD 2>/dev/null) ;;
      'ref: refs/heads/'*) branch=${head#ref: refs/heads/} ;;
      *) branch=${head:0:9} ;;
    esac
    __box_where=${dir##*/}${PWD#"$dir"}
  else
    __box_where=${PWD/#"$HOME"/\~}
  fi
  # Names of branches and directories come from whoever wrote the repository: nothing but print reaches the terminal.
  __box_where=${__box_where//[^[:print:]]/?}
  __box_branch=${branch:+ (${branch//[^[:print:]]/?})}
}
PROMPT_COMMAND=__box_prompt
PS1='\n\[\e[36m\]${__box_where}\[\e[33m\]${__box_branch}\[\e[0m\]\n\$ '
