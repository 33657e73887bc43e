using System.Text.Json;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>
/// What the admin API changed and refused: lines of JSON in <c>DIR/audit</c>. Changes and refusals have files of their own, so that
/// nobody who is refused can write over what was changed. A file that is full becomes <c>NAME.1</c>, that one <c>NAME.2</c>, and
/// the last goes: the log is bounded. A line is with the kernel before its call is answered. Never holds a body or a header.
/// Thread-safe.
/// </summary>
internal sealed class AuditLog : IDisposable
{
    /// <summary>Largest file.</summary>
    public const long FileBytesMax = 8 << 20;

    /// <summary>Files of a kind, the one that is written included.</summary>
    public const int FilesMax = 4;

    /// <summary>Most entries of an answer.</summary>
    public const int ListMax = 1000;

    private const int TextMax = 300;

    private readonly Lock _lock = new();
    private readonly Kind _changes, _refusals;
    private readonly Action<string> _warn;
    private long _sequence;
    private bool _hasFailed;

    private AuditLog(string directory, long fileBytes, Action<string> warn)
    {
        _warn = warn;
        _changes = new Kind(Path.Combine(directory, "changes.jsonl"), fileBytes);
        _refusals = new Kind(Path.Combine(directory, "refused.jsonl"), fileBytes);
    }

    /// <summary>Opens or makes the log. Throws <see cref="IOException"/> and <see cref="UnauthorizedAccessException"/>.</summary>
    public static AuditLog Open(string directory, Action<string> warn, long fileBytes = FileBytesMax)
    {
        Directory.CreateDirectory(directory, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        var log = new AuditLog(directory, fileBytes, warn);
        foreach (Kind kind in new[] { log._changes, log._refusals })
        {
            if (kind.Newest(1, long.MaxValue) is [var last, ..]) log._sequence = Math.Max(log._sequence, last.Sequence);
            kind.OpenEnd();
        }

        return log;
    }

    /// <summary>Writes an entry; its number is given here. A disk that does not take it is warned of once: the API goes on.</summary>
    public void Add(AuditEntry entry)
    {
        bool isRefusal = entry.Status is >= 400 and < 500 and not 499;
        lock (_lock)
        {
            AuditEntry numbered = entry with { Sequence = ++_sequence, Path = Short(entry.Path)!, Subject = Short(entry.Subject), From = Short(entry.From)! };
            byte[] line = [.. JsonSerializer.SerializeToUtf8Bytes(numbered, ApiJson.Default.AuditEntry), (byte)'\n'];
            try
            {
                (isRefusal ? _refusals : _changes).Append(line);
                _hasFailed = false;
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                if (!_hasFailed) _warn($"the audit log cannot be written ({e.Message}): what the admin API does is not recorded");
                _hasFailed = true;
            }
        }
    }

    /// <summary>The newest entries before a number, newest first.</summary>
    public IReadOnlyList<AuditEntry> List(int count, long before, bool withChanges, bool withRefusals)
    {
        lock (_lock)
        {
            List<AuditEntry> found = withChanges ? _changes.Newest(count, before) : [];
            if (withRefusals) found.AddRange(_refusals.Newest(count, before));
            return [.. found.OrderByDescending(e => e.Sequence).Take(count)];
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _changes.Dispose();
        _refusals.Dispose();
    }

    private static string? Short(string? text) => text is { Length: > TextMax } ? text[..TextMax] + "..." : text;

    /// <summary>The files of one kind. Under the log's lock.</summary>
    private sealed class Kind(string path, long fileBytes) : IDisposable
    {
        private FileStream? _file;

        public void OpenEnd()
        {
            bool isHalf = EndsWithinLine();
            var options = new FileStreamOptions
            {
                Mode = FileMode.Append, Access = FileAccess.Write, Share = FileShare.Read, BufferSize = 0,
                UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
            };
            _file = new FileStream(path, options);
            if (isHalf) _file.WriteByte((byte)'\n'); // or the next line would be lost with it
        }

        private bool EndsWithinLine()
        {
            if (!File.Exists(path)) return false;
            using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
            if (stream.Length == 0) return false;
            stream.Position = stream.Length - 1;
            return stream.ReadByte() != '\n';
        }

        public void Append(byte[] line)
        {
            if (_file is null) OpenEnd();
            if (_file!.Length + line.Length > fileBytes && _file.Length > 0) Rotate();
            _file!.Write(line);
        }

        public void Dispose() => _file?.Dispose();

        /// <summary>Newest first. A line that a crash left half is passed over.</summary>
        public List<AuditEntry> Newest(int count, long before)
        {
            var found = new List<AuditEntry>();
            for (int i = 0; i < FilesMax && found.Count < count; i++)
            {
                string name = NameOf(i);
                if (!File.Exists(name)) continue;
                using var stream = new FileStream(name, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
                var content = new byte[stream.Length];
                int length = stream.ReadAtLeast(content, content.Length, throwOnEndOfStream: false);
                for (int end = length; end > 0 && found.Count < count;)
                {
                    int begin = content.AsSpan(0, end - 1).LastIndexOf((byte)'\n') + 1;
                    if (TryRead(content.AsSpan(begin, end - begin)) is { } entry && entry.Sequence < before) found.Add(entry);
                    end = begin;
                }
            }

            return found;
        }

        private static AuditEntry? TryRead(ReadOnlySpan<byte> line)
        {
            try
            {
                return JsonSerializer.Deserialize(line, ApiJson.Default.AuditEntry);
            }
            catch (JsonException)
            {
                return null;
            }
        }

        private string NameOf(int age) => age == 0 ? path : path + "." + age.ToString(System.Globalization.CultureInfo.InvariantCulture);

        private void Rotate()
        {
            _file?.Dispose();
            _file = null;
            for (int age = FilesMax - 2; age >= 0; age--)
            {
                if (File.Exists(NameOf(age))) File.Move(NameOf(age), NameOf(age + 1), overwrite: true);
            }

            OpenEnd();
        }
    }
}
