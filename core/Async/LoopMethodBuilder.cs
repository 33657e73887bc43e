using System.Runtime.CompilerServices;
using System.Threading.Tasks.Sources;

namespace BlockServer.Core;

/// <summary>
/// Builds <c>async ValueTask&lt;T&gt;</c> methods that allocate nothing in steady state, at any depth of queue:
/// <code>[AsyncMethodBuilder(typeof(LoopMethodBuilder&lt;&gt;))]</code>
/// The framework's pooling builder keeps one state machine per thread and one per core; with 32 requests in flight it
/// allocates for most of them. This one keeps every finished machine in a free list of the thread, which is the loop.
/// For loop code only: no execution context flows, continuations run inline, and the task must be awaited exactly once
/// and on the thread that started it.
/// </summary>
public struct LoopMethodBuilder<T>
{
    private Machine? _machine;
    private T _result;
    private Exception? _exception;

    /// <summary>Called by the compiler.</summary>
    public static LoopMethodBuilder<T> Create() => default;

    /// <summary>Called by the compiler. A method that never waited answers without a machine.</summary>
    public readonly ValueTask<T> Task =>
        _machine is not null ? new ValueTask<T>(_machine, _machine.Version)
        : _exception is not null ? ValueTask.FromException<T>(_exception)
        : new ValueTask<T>(_result);

    /// <summary>Called by the compiler.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
#pragma warning disable CA1822 // The compiler asks for an instance method.
    public void Start<TStateMachine>(ref TStateMachine stateMachine)
        where TStateMachine : IAsyncStateMachine => stateMachine.MoveNext();

    /// <summary>Called by the compiler; never used with struct machines.</summary>
    public void SetStateMachine(IAsyncStateMachine stateMachine)
    {
    }
#pragma warning restore CA1822

    /// <summary>Called by the compiler.</summary>
    public void SetResult(T result)
    {
        if (_machine is null) _result = result;
        else _machine.SetResult(result);
    }

    /// <summary>Called by the compiler.</summary>
    public void SetException(Exception exception)
    {
        if (_machine is null) _exception = exception;
        else _machine.SetException(exception);
    }

    /// <summary>Called by the compiler.</summary>
    public void AwaitOnCompleted<TAwaiter, TStateMachine>(ref TAwaiter awaiter, ref TStateMachine stateMachine)
        where TAwaiter : INotifyCompletion
        where TStateMachine : IAsyncStateMachine
    {
        awaiter.OnCompleted(MachineOf(ref stateMachine).MoveNextAction);
    }

    /// <summary>Called by the compiler.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AwaitUnsafeOnCompleted<TAwaiter, TStateMachine>(ref TAwaiter awaiter, ref TStateMachine stateMachine)
        where TAwaiter : ICriticalNotifyCompletion
        where TStateMachine : IAsyncStateMachine
    {
        awaiter.UnsafeOnCompleted(MachineOf(ref stateMachine).MoveNextAction);
    }

    private Machine MachineOf<TStateMachine>(ref TStateMachine stateMachine)
        where TStateMachine : IAsyncStateMachine
    {
        if (_machine is not null) return _machine;

        Machine<TStateMachine> machine = Machine<TStateMachine>.Rent();
        _machine = machine; // before the copy: the copied state machine carries this builder and must find its machine
        machine.StateMachine = stateMachine;
        return machine;
    }

    private abstract class Machine : IValueTaskSource<T>
    {
        private ManualResetValueTaskSourceCore<T> _source; // mutable struct: never readonly

        protected Machine() => MoveNextAction = MoveNext;

        public Action MoveNextAction { get; }

        public short Version => _source.Version;

        public void SetResult(T result) => _source.SetResult(result);

        public void SetException(Exception exception) => _source.SetException(exception);

        public T GetResult(short token)
        {
            // Throws on the token of an earlier run: a task that is awaited twice must not give back a machine that another
            // method has by now.
            Check.That(_source.GetStatus(token) != ValueTaskSourceStatus.Pending);
            try
            {
                return _source.GetResult(token);
            }
            finally
            {
                _source.Reset();
                Return();
            }
        }

        public ValueTaskSourceStatus GetStatus(short token) => _source.GetStatus(token);

        public void OnCompleted(
            Action<object?> continuation, object? state, short token, ValueTaskSourceOnCompletedFlags flags) =>
            _source.OnCompleted(continuation, state, token, ValueTaskSourceOnCompletedFlags.None);

        protected abstract void MoveNext();

        protected abstract void Return();
    }

    private sealed class Machine<TStateMachine> : Machine
        where TStateMachine : IAsyncStateMachine
    {
        [ThreadStatic]
        private static Machine<TStateMachine>? t_free;

        private Machine<TStateMachine>? _next;

        public TStateMachine StateMachine = default!; // a field: it is moved by reference

        public static Machine<TStateMachine> Rent()
        {
            Machine<TStateMachine>? machine = t_free;
            if (machine is null) return new Machine<TStateMachine>();
            t_free = machine._next;
            machine._next = null;
            return machine;
        }

        protected override void MoveNext() => StateMachine.MoveNext();

        protected override void Return()
        {
            StateMachine = default!; // drops what the method's locals held
            _next = t_free;
            t_free = this;
        }
    }
}
