using BlockServer.Streams;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Pfcli;

/// <summary>
/// Where an export goes: a stream as it comes, or the disk image that it holds. A file can be gone on with: a stream by what is
/// in it, an image by the cursor in a small file beside it (<c>FILE.cursor</c>), which goes when the image is whole.
/// </summary>
internal sealed class ExportTarget : IDisposable
{
    private const ulong KeepEveryBytes = 256 << 20;

    private readonly CliHost _host;
    private readonly SafeFileHandle? _file;
    private readonly Stream? _pipe;
    private readonly byte[] _zeros = new byte[1 << 20];
    private ulong _at;

    private ExportTarget(CliHost host, string name, bool isRaw, SafeFileHandle? file, Stream? pipe)
    {
        (_host, Name, IsRaw, _file, _pipe) = (host, name, isRaw, file, pipe);
    }

    /// <summary>The file's name, or -.</summary>
    public string Name { get; }

    /// <summary>A disk image, not a stream.</summary>
    public bool IsRaw { get; }

    /// <summary>The stream's header; null before it has come.</summary>
    public StreamHeader? Header { get; private set; }

    /// <summary>From where to go on; null: from the beginning.</summary>
    public StreamCursor? Cursor { get; private set; }

    /// <summary>Nothing is missing.</summary>
    public bool IsWhole { get; private set; }

    /// <summary>Bytes of data in the content.</summary>
    public ulong DataBytes { get; private set; }

    private string CursorFile => Name + ".cursor";

    /// <summary>Opens it; a file must not exist unless it is to be gone on with. Throws <see cref="CliException"/>.</summary>
    public static ExportTarget Open(CliHost host, string name, bool isRaw, bool resumes)
    {
        if (name == "-") return new ExportTarget(host, name, isRaw, null, host.OpenOut());
        try
        {
            FileMode mode = resumes ? FileMode.Open : FileMode.CreateNew;
            var target = new ExportTarget(
                host, name, isRaw, System.IO.File.OpenHandle(name, mode, FileAccess.ReadWrite, FileShare.Read), null);
            try
            {
                if (resumes) target.FindPlace();
                return target;
            }
            catch
            {
                target.Dispose();
                throw;
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            string advice = e is IOException && System.IO.File.Exists(name) && !resumes ? "; choose another name, or go on with it by --resume" : "";
            throw new CliException($"{name}: {e.Message.TrimEnd('.')}{advice}", inner: e);
        }
    }

    /// <summary>Takes what the daemon sends, to its end; how many bytes. Throws <see cref="IOException"/> when it breaks off.</summary>
    public async Task<ulong> TakeAsync(Stream source, string what, bool isQuiet, CancellationToken cancel)
    {
        var input = new StreamInput(source);
        ulong before = Cursor?.PositionBytes ?? 0;
        if (Cursor is null)
        {
            await input.ReadHeaderAsync(default, cancel);
            Header = input.Header;
            if (!IsRaw) await PutHeaderAsync(cancel);
            else if (_file is not null) RandomAccess.SetLength(_file, (long)Header.SizeBytes);
        }
        else
        {
            input.GoOn(Header!, Cursor);
        }

        var progress = new TransferProgress(_host, what, Header!.SizeBytes, input.Cursor.OffsetBytes, isQuiet);
        Task writing = Task.CompletedTask;
        byte[] filling = new byte[StreamHeader.DataBytesMax], written = new byte[StreamHeader.DataBytesMax];
        ulong kept = input.Cursor.OffsetBytes;
        try
        {
            while (!input.IsWhole)
            {
                StreamFrame frame = await input.ReadAsync(filling, cancel) ?? throw new IOException("the daemon ended it");
                await writing;
                // While one frame is written, the next one is received.
                (filling, written) = (written, filling);
                writing = PutAsync(frame, IsRaw ? default : input.FrameBytes.ToArray(), written.AsMemory(0, frame.PayloadBytes), cancel);
                progress.Show(frame.OffsetBytes + frame.LengthBytes);
                if (IsRaw && _file is not null && input.Cursor.OffsetBytes - kept >= KeepEveryBytes)
                {
                    await writing;
                    kept = input.Cursor.OffsetBytes;
                    KeepPlace(input.Cursor);
                }
            }

            await writing;
        }
        catch (Exception e) when (e is not CliException)
        {
            await writing.ContinueWith(static _ => { }, TaskScheduler.Default);
            if (IsRaw && _file is not null && writing.IsCompletedSuccessfully) KeepPlace(input.Cursor);
            throw;
        }
        finally
        {
            progress.End();
        }

        IsWhole = true;
        DataBytes = input.Cursor.DataBytes;
        if (_pipe is not null) await _pipe.FlushAsync(cancel);
        if (IsRaw && _file is not null) System.IO.File.Delete(CursorFile);
        return input.Cursor.PositionBytes - before;
    }

    /// <summary>The file, to be handed over to the daemon; null for a pipe.</summary>
    public SafeFileHandle? File => _file;

    /// <summary>Takes what the daemon says while it writes the file that was handed over: where it stands, to the end. How many bytes
    /// of a stream came. Throws <see cref="IOException"/> when it breaks off.</summary>
    public async Task<ulong> FollowAsync(Stream report, string what, bool isQuiet, CancellationToken cancel)
    {
        ulong before = Cursor?.PositionBytes ?? 0;
        var bytes = new byte[StreamHeader.Size];
        await report.ReadExactlyAsync(bytes, cancel);
        if (StreamHeader.TryRead(bytes, out StreamHeader? header) is { } fault) throw new CliException(fault);
        Header ??= header!;
        if (IsRaw && Cursor is null) RandomAccess.SetLength(_file!, (long)Header.SizeBytes);
        var progress = new TransferProgress(_host, what, Header.SizeBytes, Cursor?.OffsetBytes ?? 0, isQuiet);
        using var lines = new StreamReader(report, System.Text.Encoding.UTF8, false, 4096, leaveOpen: true);
        ulong kept = Cursor?.OffsetBytes ?? 0;
        try
        {
            while (await lines.ReadLineAsync(cancel) is { } line)
            {
                (string word, string rest) = line.IndexOf(' ', StringComparison.Ordinal) is > 0 and int at ? (line[..at], line[(at + 1)..]) : (line, "");
                if (word == "fault") throw new IOException(rest);
                if (word is not ("at" or "end")) continue; // of a later release
                Cursor = StreamCursor.TryParse(rest) ?? throw new CliException("this daemon's cursors are of another release");
                progress.Show(Cursor.OffsetBytes);
                if (word == "end") return Whole(before);
                if (!IsRaw || Cursor.OffsetBytes - kept < KeepEveryBytes) continue;
                kept = Cursor.OffsetBytes;
                KeepPlace(Cursor);
            }

            throw new IOException("the daemon ended it");
        }
        catch (Exception e) when (e is not CliException)
        {
            // Before the first word it stands where it began.
            if (IsRaw) KeepPlace(Cursor ?? StreamCursor.AtStart(Header));
            throw;
        }
        finally
        {
            progress.End();
        }
    }

    private ulong Whole(ulong before)
    {
        IsWhole = true;
        DataBytes = Cursor!.DataBytes;
        if (IsRaw) System.IO.File.Delete(CursorFile);
        return Cursor.PositionBytes - before;
    }

    /// <summary>Takes a new file away in which there is nothing.</summary>
    public void Remove()
    {
        if (_file is not null) System.IO.File.Delete(Name);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _file?.Dispose();
        _pipe?.Dispose();
    }

    private async Task PutHeaderAsync(CancellationToken cancel)
    {
        var bytes = new byte[StreamHeader.Size];
        Header!.WriteTo(bytes);
        await AppendAsync(bytes, cancel);
    }

    private async Task PutAsync(StreamFrame frame, ReadOnlyMemory<byte> header, ReadOnlyMemory<byte> payload, CancellationToken cancel)
    {
        await Task.Yield();
        if (!IsRaw)
        {
            await AppendAsync(header, cancel);
            await AppendAsync(payload, cancel);
        }
        else if (frame.Kind == StreamKind.Data && _file is not null)
        {
            RandomAccess.Write(_file, payload.Span, (long)frame.OffsetBytes);
        }
        else if (frame.Kind == StreamKind.Data)
        {
            await AppendAsync(payload, cancel);
        }
        else if (_pipe is not null)
        {
            for (ulong left = frame.LengthBytes; left > 0;)
            {
                int count = (int)Math.Min(left, (ulong)_zeros.Length);
                await AppendAsync(_zeros.AsMemory(0, count), cancel);
                left -= (ulong)count;
            }
        }
    }

    private async Task AppendAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancel)
    {
        if (_pipe is not null) await _pipe.WriteAsync(bytes, cancel);
        else RandomAccess.Write(_file!, bytes.Span, (long)_at);
        _at += (ulong)bytes.Length;
    }

    private void KeepPlace(StreamCursor cursor)
    {
        var header = new byte[StreamHeader.Size];
        Header!.WriteTo(header);
        System.IO.File.WriteAllText(CursorFile + ".new", cursor + "\n" + Convert.ToHexStringLower(header) + "\n");
        System.IO.File.Move(CursorFile + ".new", CursorFile, overwrite: true);
    }

    private void FindPlace()
    {
        if (!IsRaw)
        {
            FindEnd().GetAwaiter().GetResult();
            return;
        }

        string[] lines = System.IO.File.Exists(CursorFile) ? System.IO.File.ReadAllLines(CursorFile) : [];
        StreamHeader? header = null;
        bool isKnown = lines.Length >= 2 && lines[1].Length == 2 * StreamHeader.Size && lines[1].All(char.IsAsciiHexDigit)
            && StreamHeader.TryRead(Convert.FromHexString(lines[1]), out header) is null;
        Cursor = isKnown ? StreamCursor.TryParse(lines[0]) : null;
        if (Cursor is null || Cursor.StreamId != header!.StreamId)
            throw new CliException($"{CursorFile} does not say where the export stood; delete {Name} and begin anew");
        Header = header;
    }

    /// <summary>Reads what there is of a stream and cuts off what is behind the last whole frame.</summary>
    private async Task FindEnd()
    {
        using var content = new FileStream(new SafeFileHandle(_file!.DangerousGetHandle(), ownsHandle: false), FileAccess.Read, 1 << 20);
        content.Position = 0;
        var input = new StreamInput(content);
        await input.ReadHeaderAsync(default, CancellationToken.None);
        Header = input.Header;
        var payload = new byte[StreamHeader.DataBytesMax];
        while (!input.IsWhole && await input.ReadAsync(payload, CancellationToken.None) is not null)
        {
        }

        IsWhole = input.IsWhole;
        DataBytes = input.Cursor.DataBytes;
        Cursor = input.Cursor.Copy();
        _at = Cursor.PositionBytes;
        if (!IsWhole) RandomAccess.SetLength(_file, (long)_at);
    }
}
