using System.Buffers;

namespace BlockServer.Pfcli;

/// <summary>
/// Sends what is put into one buffer while the next one is filled. One owner; <see cref="EndAsync"/> before the target or the
/// buffers go.
/// </summary>
internal sealed class AheadSender(Stream target, int bufferBytes)
{
    private ArrayBufferWriter<byte> _filling = new(bufferBytes), _sent = new(bufferBytes);
    private Task _sending = Task.CompletedTask;

    /// <summary>Where the next bytes go; asked for anew after every <see cref="SendAsync"/>.</summary>
    public ArrayBufferWriter<byte> Buffer => _filling;

    /// <summary>Begins to send what is in <see cref="Buffer"/>, when what was there before has gone. A failure comes with the next
    /// call.</summary>
    public async Task SendAsync(CancellationToken cancel)
    {
        await _sending;
        (_filling, _sent) = (_sent, _filling);
        _filling.ResetWrittenCount();
        ReadOnlyMemory<byte> bytes = _sent.WrittenMemory;
        // On another thread: a send copies into the kernel before it first waits.
        _sending = Task.Run(() => target.WriteAsync(bytes, cancel).AsTask(), CancellationToken.None);
    }

    /// <summary>All has gone; throws when it has not.</summary>
    public Task FlushAsync() => _sending;

    /// <summary>Nothing is being sent any more, well or not.</summary>
    public Task EndAsync() => _sending.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
}
