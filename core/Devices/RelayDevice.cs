using System.Runtime.CompilerServices;

namespace BlockServer.Core;

/// <summary>
/// A device of another loop, for users on this one: each request goes over by a message and its answer comes back by another.
/// It allocates nothing once warm. Lives on <paramref name="here"/>; <paramref name="device"/> lives on <paramref name="there"/>.
/// The memory of a request is lent across, as it would be to the kernel.
/// </summary>
public sealed class RelayDevice(IBlockDevice device, ILoop here, ILoop there) : IBlockDevice
{
    private Call? _free;

    private enum Verb
    {
        Read,
        Write,
        Flush,
        Trim,
        Zero,
        Prefetch,
        Map,
    }

    /// <inheritdoc/>
    public ulong SizeBytes => device.SizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => device.IsReadOnly;

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        Call call = Take(Verb.Read, offsetBytes, (ulong)target.Length, WriteFlags.None);
        call.Target = target;
        return call.SendAsync();
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        Call call = Take(Verb.Write, offsetBytes, (ulong)source.Length, flags);
        call.Source = source;
        return call.AskAsync();
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => Take(Verb.Flush, 0, 0, WriteFlags.None).AskAsync();

    /// <inheritdoc/>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        Take(Verb.Trim, offsetBytes, lengthBytes, flags).AskAsync();

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        Take(Verb.Zero, offsetBytes, lengthBytes, flags).AskAsync();

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) =>
        Take(Verb.Prefetch, offsetBytes, lengthBytes, WriteFlags.None).AskAsync();

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs)
    {
        Call call = Take(Verb.Map, offsetBytes, lengthBytes, WriteFlags.None);
        (call.RunsMax, call.Runs) = (runsMax, runs);
        return call.AskAsync();
    }

    private Call Take(Verb verb, ulong offset, ulong length, WriteFlags flags)
    {
        here.CheckHere();
        Call call = _free ?? new Call(this);
        _free = call.Next;
        (call.Verb, call.Offset, call.Length, call.Flags) = (verb, offset, length, flags);
        return call;
    }

    /// <summary>One request under way. Touched by one loop at a time: the message hands it over.</summary>
    private sealed class Call : LoopOperation<ReadResult>
    {
        private readonly RelayDevice _owner;
        private readonly Action _go, _comeBack, _endRead, _endAsked;
        private ValueTaskAwaiter<ReadResult> _read; // mutable structs: never readonly
        private ValueTaskAwaiter<IoStatus> _asked;
        private ReadResult _result;

        public Call(RelayDevice owner)
        {
            _owner = owner;
            _go = Go;
            _comeBack = () => Complete(_result);
            (_endRead, _endAsked) = (EndRead, EndAsked);
        }

        public Verb Verb;
        public ulong Offset, Length;
        public WriteFlags Flags;
        public Memory<byte> Target;
        public ReadOnlyMemory<byte> Source;
        public int RunsMax;
        public List<MapRun>? Runs;
        public Call? Next;

        public ValueTask<ReadResult> SendAsync()
        {
            ValueTask<ReadResult> answer = Begin();
            _owner.There.PostFromAnywhere(_go);
            return answer;
        }

        [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
        public async ValueTask<IoStatus> AskAsync() => (await SendAsync()).Status;

        protected override void OnTaken()
        {
            (Target, Source, Runs) = (default, default, null);
            Next = _owner._free;
            _owner._free = this;
        }

        // On the other loop, until the message goes back. No async method: its machine would be of the wrong thread's pool.
        private void Go()
        {
            IBlockDevice device = _owner.Device;
#pragma warning disable CA2012 // Each is awaited once, by hand.
            if (Verb == Verb.Read)
            {
                _read = device.ReadAsync(Offset, Target).GetAwaiter();
                if (_read.IsCompleted) EndRead();
                else _read.UnsafeOnCompleted(_endRead);
                return;
            }

            _asked = (Verb switch
            {
                Verb.Write => device.WriteAsync(Offset, Source, Flags),
                Verb.Flush => device.FlushAsync(),
                Verb.Trim => device.TrimAsync(Offset, Length, Flags),
                Verb.Zero => device.WriteZeroesAsync(Offset, Length, Flags),
                Verb.Prefetch => device.PrefetchAsync(Offset, Length),
                _ => device.MapAsync(Offset, Length, RunsMax, Runs!),
            }).GetAwaiter();
#pragma warning restore CA2012
            if (_asked.IsCompleted) EndAsked();
            else _asked.UnsafeOnCompleted(_endAsked);
        }

        private void EndRead()
        {
            _result = _read.GetResult();
            _owner.Here.PostFromAnywhere(_comeBack);
        }

        private void EndAsked()
        {
            _result = _asked.GetResult();
            _owner.Here.PostFromAnywhere(_comeBack);
        }
    }

    private IBlockDevice Device => device;

    private ILoop Here => here;

    private ILoop There => there;
}
