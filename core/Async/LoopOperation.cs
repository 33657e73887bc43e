using System.Threading.Tasks.Sources;

namespace BlockServer.Core;

/// <summary>
/// One awaited answer, reusable: made once, kept in its owner's free list, awaited without allocating. Lives on one
/// loop. Call order: <see cref="Begin"/> (hand the task to the one caller), then exactly one <see cref="Complete"/>;
/// the awaiter runs inline there, and after it has taken the result the object may begin anew.
/// </summary>
public class LoopOperation<T> : IValueTaskSource<T>
{
    private ManualResetValueTaskSourceCore<T> _source; // mutable struct: never readonly

    /// <summary>Between <see cref="Begin"/> and <see cref="Complete"/>.</summary>
    public bool IsPending { get; private set; }

    /// <summary>Starts a wait; the task must be awaited once.</summary>
    public ValueTask<T> Begin()
    {
        Check.That(!IsPending);
        IsPending = true;
        _source.Reset();
        return new ValueTask<T>(this, _source.Version);
    }

    /// <summary>Answers; the awaiter continues inline, on this thread.</summary>
    public void Complete(T result)
    {
        Check.That(IsPending);
        IsPending = false;
        _source.SetResult(result);
    }

    T IValueTaskSource<T>.GetResult(short token)
    {
        T result = _source.GetResult(token);
        OnTaken();
        return result;
    }

    ValueTaskSourceStatus IValueTaskSource<T>.GetStatus(short token) => _source.GetStatus(token);

    void IValueTaskSource<T>.OnCompleted(
        Action<object?> continuation, object? state, short token, ValueTaskSourceOnCompletedFlags flags) =>
        _source.OnCompleted(continuation, state, token, ValueTaskSourceOnCompletedFlags.None);

    /// <summary>The result has been taken: the place to return to a free list.</summary>
    protected virtual void OnTaken()
    {
    }
}

/// <summary>
/// A result that one waiter may await before or after it is set, once. Lives on one loop. For rare paths: it allocates.
/// </summary>
public sealed class LoopEvent<T> : IValueTaskSource<T>
{
    private ManualResetValueTaskSourceCore<T> _source; // mutable struct: never readonly

    /// <summary>True once set.</summary>
    public bool IsSet => _source.GetStatus(_source.Version) != ValueTaskSourceStatus.Pending;

    /// <summary>The wait; await it once.</summary>
    public ValueTask<T> WaitAsync() => new(this, _source.Version);

    /// <summary>Sets the result; the waiter continues inline.</summary>
    public void Set(T result) => _source.SetResult(result);

    T IValueTaskSource<T>.GetResult(short token) => _source.GetResult(token);

    ValueTaskSourceStatus IValueTaskSource<T>.GetStatus(short token) => _source.GetStatus(token);

    void IValueTaskSource<T>.OnCompleted(
        Action<object?> continuation, object? state, short token, ValueTaskSourceOnCompletedFlags flags) =>
        _source.OnCompleted(continuation, state, token, ValueTaskSourceOnCompletedFlags.None);
}
