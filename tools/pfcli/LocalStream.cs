using System.Net;
using System.Net.Sockets;

namespace BlockServer.Pfcli;

/// <summary>
/// A connection to a daemon of this machine. Long reads and writes block the thread that asks for them: both sides move what is
/// in the kernel's small buffer by turns, and a wake-up through the poll thread and the thread pool at each of them costs more
/// than the copying. What is short may wait for long (an answer, or that the connection ends), and does so elsewhere. Disposing
/// ends what is blocked. One reader and one writer at a time.
/// </summary>
public sealed class LocalStream(Socket socket) : Stream
{
    /// <summary>A read of so much is of a body that is being sent.</summary>
    private const int LongBytes = 64 << 10;

    // The kernel gives what it may; a unix socket's own is 208 KiB and each filling of it is a wake-up.
    private const int BufferBytes = 4 << 20;

    /// <inheritdoc/>
    public override bool CanRead => true;

    /// <inheritdoc/>
    public override bool CanWrite => true;

    /// <inheritdoc/>
    public override bool CanSeek => false;

    /// <inheritdoc/>
    public override long Length => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <summary>Connects to the unix socket at <paramref name="path"/>. Throws <see cref="SocketException"/>.</summary>
    public static LocalStream Connect(string path)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { SendBufferSize = BufferBytes };
        return Connect(socket, new UnixDomainSocketEndPoint(path));
    }

    /// <summary>Connects to a server by its name: blocking if it is this machine, as others do if not. Throws
    /// <see cref="SocketException"/>.</summary>
    public static async ValueTask<Stream> ConnectAsync(DnsEndPoint server, CancellationToken cancel)
    {
        if (IPAddress.TryParse(server.Host, out IPAddress? address) && IPAddress.IsLoopback(address))
            return Connect(new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true }, new IPEndPoint(address, server.Port));
        var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        try
        {
            await socket.ConnectAsync(server, cancel);
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public override int Read(Span<byte> buffer) => Tried(socket.Receive(buffer, SocketFlags.None, out SocketError error), error);

    /// <inheritdoc/>
    public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

    /// <inheritdoc/>
    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (cancellationToken.IsCancellationRequested) return ValueTask.FromCanceled<int>(cancellationToken);
        try
        {
            return buffer.Length >= LongBytes || socket.Available > 0
                ? new(Read(buffer.Span)) : new(Task.Run(() => Read(buffer.Span), CancellationToken.None));
        }
        catch (Exception e) when (e is IOException or SocketException or ObjectDisposedException)
        {
            return ValueTask.FromException<int>(e as IOException ?? new IOException(e.Message, e));
        }
    }

    /// <inheritdoc/>
    public override Task<int> ReadAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) =>
        ReadAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

    /// <inheritdoc/>
    public override void Write(ReadOnlySpan<byte> buffer)
    {
        while (buffer.Length > 0) buffer = buffer[Tried(socket.Send(buffer, SocketFlags.None, out SocketError error), error)..];
    }

    /// <inheritdoc/>
    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    /// <inheritdoc/>
    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (cancellationToken.IsCancellationRequested) return ValueTask.FromCanceled(cancellationToken);
        try
        {
            Write(buffer.Span);
            return default;
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
            return ValueTask.FromException(e as IOException ?? new IOException(e.Message, e));
        }
    }

    /// <inheritdoc/>
    public override Task WriteAsync(byte[] buffer, int offset, int count, CancellationToken cancellationToken) =>
        WriteAsync(buffer.AsMemory(offset, count), cancellationToken).AsTask();

    /// <inheritdoc/>
    public override void Flush()
    {
    }

    /// <inheritdoc/>
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void SetLength(long value) => throw new NotSupportedException();

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing) socket.Dispose(); // wakes who is blocked in it
        base.Dispose(disposing);
    }

    private static LocalStream Connect(Socket socket, EndPoint server)
    {
        try
        {
            socket.Connect(server);
            return new LocalStream(socket);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    private static int Tried(int count, SocketError error) =>
        error == SocketError.Success ? count : throw new IOException(new SocketException((int)error).Message, new SocketException((int)error));
}
